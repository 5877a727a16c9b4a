from .erasing import Erasure as Erasure
from .groups import StoredGroups as StoredGroups
from .migrate import HEAD as HEAD
from .migrate import schema_revision as schema_revision
from .migrate import upgrade as upgrade
from .sql_store import SQLStore as SQLStore
from .trace_filter import TraceFilter as TraceFilter
