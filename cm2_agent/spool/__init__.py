"""The write-ahead spool: files of runs that a process has answered and not yet stored."""
