"""The audit: how inconsistent a reward model is, and how many particles that costs."""

from rmtools.audit.audit import AuditReport, audit
from rmtools.audit.model import ModelAudit

__all__ = ["AuditReport", "ModelAudit", "audit"]
