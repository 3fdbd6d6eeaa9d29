"""Large runs: many videos, in shards that any number of processes or machines work on, and formats for their tokens."""

from fewtokens.jobs.engines import run_local
from fewtokens.jobs.export import export
from fewtokens.jobs.folder import Plan, Shard, Source
from fewtokens.jobs.formats import FORMATS, Format, find_files, read_records
from fewtokens.jobs.job import Report, run_job
from fewtokens.jobs.ray_engine import run_ray
from fewtokens.jobs.records import Record
from fewtokens.jobs.shard import Reduce, Task, Work, run_shard
from fewtokens.jobs.sources import find_sources
from fewtokens.jobs.store import Store

__all__ = [
    "FORMATS",
    "Format",
    "Plan",
    "Record",
    "Reduce",
    "Report",
    "Shard",
    "Source",
    "Store",
    "Task",
    "Work",
    "export",
    "find_files",
    "find_sources",
    "read_records",
    "run_job",
    "run_local",
    "run_ray",
    "run_shard",
]
