"""Losses on soft targets, and the weights of classes in them."""

from __future__ import annotations

import torch
from torch.nn import functional as F

from training.config import LossConfig


def class_counts(labels: torch.Tensor, n_classes: int) -> torch.Tensor:
    """How many faces carry each label: int64 (K,). labels: int64 (N,)."""
    return torch.bincount(labels, minlength=n_classes)


def balanced_weights(counts: torch.Tensor) -> torch.Tensor:
    """total / (classes × count), float32 (K,); 0 for a class without faces, which is never a target."""
    weights = counts.sum() / (len(counts) * counts.clamp_min(1).float())
    return torch.where(counts > 0, weights, 0.0)


def effective_number_weights(counts: torch.Tensor, beta: float) -> torch.Tensor:
    """(1 - β) / (1 - β^count), scaled to sum to the number of classes (Cui et al., 2019, equation 4): float32 (K,).

    A class without faces has weight 0.
    """
    effective = 1 - torch.pow(torch.tensor(beta, dtype=torch.float64), counts.double())
    weights = torch.where(counts > 0, (1 - beta) / effective.clamp_min(1e-300), 0.0)
    return (weights / weights.sum() * len(counts)).float()


def loss_weights(config: LossConfig, counts: torch.Tensor) -> torch.Tensor | None:
    """The class weights that the configuration asks for, float32 (K,); None for all alike.

    Balanced weights and those of the class-balanced loss multiply when both are asked for.
    """
    weights = None
    if config.class_weights == "balanced":
        weights = balanced_weights(counts)
    if config.kind == "class-balanced-focal":
        balance = effective_number_weights(counts, config.class_balance_beta)
        weights = balance if weights is None else weights * balance
    return weights


def classification_loss(
    logits: torch.Tensor, targets: torch.Tensor, config: LossConfig, weights: torch.Tensor | None
) -> torch.Tensor:
    """Mean over the batch of -Σ_k weight_k · target_k · (1 - p_k)^γ · log p_k, a scalar; γ is 0 for cross-entropy.

    logits, targets: float32 (N, K), each row of targets a distribution. With one-hot targets the focal kinds are the
    focal loss of Lin et al. (2017). With weights the mean is over faces, not over weights.
    """
    log_p = F.log_softmax(logits, dim=1)
    terms = -targets * log_p
    if config.kind != "cross-entropy":
        # Above 0, where a power under 1 has no slope: a face that is certain would make every weight NaN.
        terms = terms * (-torch.expm1(log_p)).clamp_min(1e-12).pow(config.focal_gamma)
    if weights is not None:
        terms = terms * weights
    return terms.sum(1).mean()
