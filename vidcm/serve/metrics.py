"""Counters of a service, as Prometheus reads them."""

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import GaugeMetricFamily
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from vidcm.serve.jobs import Job, JobStore

SECONDS = (0.01, 0.03, 0.1, 0.3, 1, 3, 10, 30, 100, 300)


class Metrics:
    """The metrics of one service.

    Args:
        store: Its jobs.
    """

    content_type = CONTENT_TYPE_LATEST

    def __init__(self, store: JobStore):
        self._store = store
        self.registry = CollectorRegistry()
        self.registry.register(self)  # pyright: ignore[reportArgumentType]
        ProcessCollector(registry=self.registry)
        self._jobs = Counter(
            "vidcm_jobs", "Finished jobs", ["model", "kind", "status"], registry=self.registry
        )
        self._seconds = Histogram(
            "vidcm_stage_seconds",
            "Seconds of a stage of a job, those of its batch",
            ["stage"],
            buckets=SECONDS,
            registry=self.registry,
        )
        self._batch = Histogram(
            "vidcm_batch_jobs",
            "Jobs made in one forward",
            buckets=(1, 2, 4, 8, 16),
            registry=self.registry,
        )
        self._refused = Counter(
            "vidcm_queue_full", "Requests refused since the queue was full", registry=self.registry
        )

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """What holds now; a part of prometheus_client's interface of collectors."""
        jobs = self._store.all()
        for name, text, value in (
            ("vidcm_jobs_waiting", "Jobs in the queue", "queued"),
            ("vidcm_jobs_running", "Jobs being made", "in_progress"),
        ):
            yield GaugeMetricFamily(name, text, sum(job.status == value for job in jobs))
        size = sum(job.result.size for job in jobs if job.result)
        yield GaugeMetricFamily("vidcm_result_bytes", "Memory of kept results", size)

    def finished(self, job: Job) -> None:
        """Count a job at its end."""
        self._jobs.labels(job.work.model, job.work.kind, job.status).inc()
        if job.started_at is not None:
            self._seconds.labels("queue").observe(job.started_at - job.created_at)
        if job.result is not None:
            for stage, seconds in job.result.seconds.items():
                self._seconds.labels(stage).observe(seconds)

    def batch(self, count: int) -> None:
        """Count jobs that begin together."""
        self._batch.observe(count)

    def refused(self) -> None:
        """Count a request that found the queue full."""
        self._refused.inc()

    def text(self) -> bytes:
        """All of it, in Prometheus' text format."""
        return generate_latest(self.registry)
