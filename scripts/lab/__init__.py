"""The lab: small MoEs really trained, tuned and broken in known ways, each pair audited."""
