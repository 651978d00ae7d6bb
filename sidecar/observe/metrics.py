"""Events as numbers for Prometheus: counters and histograms from what happened, gauges from what is.

Alone, a process counts in memory. Beside others it counts in files of a folder they share, and whoever is asked
tells of all: what a process has counted stays when it dies, and the one in its place counts on from there.
"""

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from sidecar.clock import Clock
from sidecar.events import Event, Renewal, RequestDone, StoreTrouble
from sidecar.secret import Secret  # noqa: F401
