"""The page of `vidcm serve`: gradio over the service of jobs, behind the same guard as the API.

Only `mount` may be imported without gradio, which takes seconds.
"""
