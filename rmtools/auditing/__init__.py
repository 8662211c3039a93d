"""The audit: how inconsistent a reward model is, and how many particles that costs."""

from rmtools.auditing.audit import AuditReport, audit
from rmtools.auditing.model_audit import ModelAudit

__all__ = ["AuditReport", "ModelAudit", "audit"]
