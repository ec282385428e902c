"""For tests of applications: a model server on loopback that speaks five dialects and fails by name.

Must never be imported by the package itself, nor need pytest.
"""

from .fault_server import Fault, FaultServer, Seen, closed_port

__all__ = ["Fault", "FaultServer", "Seen", "closed_port"]
