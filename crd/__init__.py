"""Content relationships for distilling efficient GANs (arXiv:2212.11091)."""

from crd.method import ContentRelationLoss, content_relation_loss, relation

__all__ = ["ContentRelationLoss", "content_relation_loss", "relation"]
