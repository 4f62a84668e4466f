"""Serving: a service of jobs, usable without HTTP, and an HTTP API over it.

`service.JobService` owns the pipelines and makes jobs in one thread; `app.create_app` is the
FastAPI application over a service; `server.make_server` listens.
"""
