"""From a trace and a checklist to a Score: what is in scope, checked, judged and paid."""
