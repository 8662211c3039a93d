"""The audit: how inconsistent a reward model is, and how many particles that costs."""

from rmtools.auditing.audit import audit
from rmtools.auditing.model_audit import ModelAudit
from rmtools.auditing.report import AuditReport, read_report

__all__ = ["AuditReport", "ModelAudit", "audit", "read_report"]
