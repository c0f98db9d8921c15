r"""Read, check and write policy files. The parts for YAML need the extra `cli`.

>>> from flagkit.policy_files import dump_yaml
>>> dump_yaml([])
'flags: []\n'
"""

from flagkit.policy_files.dump import dump_json, dump_yaml
from flagkit.policy_files.json_schema import build_schema
from flagkit.policy_files.reader import FlagPolicy, PolicyFile, SegmentPolicy, iter_faults

__all__ = [
    "FlagPolicy",
    "PolicyFile",
    "SegmentPolicy",
    "build_schema",
    "dump_json",
    "dump_yaml",
    "iter_faults",
]
