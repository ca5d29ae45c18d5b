"""The losses on embeddings: relations between the samples of a batch. Embeddings in, a scalar out; no state.

An embedding is what a network's head reads. Shapes: B samples of the batch, D values of an embedding, in which student and
teacher may differ; M negatives. Weights are applied by the caller.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

RKD_WEIGHTS = (25.0, 50.0)  # of distances and angles: Park et al. 2019, section 4.3, and RepDistiller
_EPS = 1e-7


def rkd_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Relational distillation: 25·distances + 50·angles, both by the Huber loss (Park et al. 2019, Eq. 5-9).

    Distances are over the mean positive one of the batch; angles are cosines at j of all triplets (i, j, k). Memory grows
    with B³.
    """
    distances = F.smooth_l1_loss(_distances(student_BD), _distances(teacher_BD))
    angles = F.smooth_l1_loss(_angles(student_BD), _angles(teacher_BD))
    return RKD_WEIGHTS[0] * distances + RKD_WEIGHTS[1] * angles


def _distances(x_BD: Tensor) -> Tensor:
    difference = x_BD[:, None] - x_BD[None, :]
    squares = difference.pow(2).sum(2)
    distances = squares.clamp(min=1e-12).sqrt() * (squares > 0)  # sqrt has no slope at 0
    # Without the diagonal: what is positive, in the order in which a mask would pick it, which would wait for a GPU.
    pairs = distances.flatten()[1:].view(len(x_BD) - 1, len(x_BD) + 1)[:, :-1] if len(x_BD) > 1 else distances
    mean = pairs.flatten().sum() / (pairs > 0).sum().clamp(min=1)
    return distances / mean.clamp(min=_EPS)


def _angles(x_BD: Tensor) -> Tensor:
    edges = F.normalize(x_BD[None, :] - x_BD[:, None], dim=2)
    return torch.bmm(edges, edges.transpose(1, 2))


def pkt_loss(student_BD: Tensor, teacher_BD: Tensor) -> Tensor:
    """Probabilistic transfer: mean over pairs of p_t·ln(p_t/p_s) (Passalis & Tefas 2018, Eq. 2, 8; cosine kernel).

    p(j|i) is (cos + 1)/2 over the sum of its row. The mean, in place of the sum, is RepDistiller's; its weight is 30,000.
    """

    def neighbours(x_BD: Tensor) -> Tensor:
        unit = F.normalize(x_BD, eps=_EPS)
        similarity = (unit @ unit.T + 1) / 2
        return similarity / similarity.sum(1, keepdim=True)

    student, teacher = neighbours(student_BD), neighbours(teacher_BD)
    return (teacher * ((teacher + _EPS) / (student + _EPS)).log()).mean()


def cc_loss(student_BD: Tensor, teacher_BD: Tensor, gamma: float = 0.4, order: int = 2) -> Tensor:
    """Correlation congruence: mean square difference of the batches' kernel matrices (Peng et al. 2019, Eq. 4, 8).

    The kernel is the Taylor series of exp(-gamma·‖x - y‖²) for vectors of length 1 up to `order`. RepDistiller trains
    two projections and compares neighbours in the batch instead, which depends on the order of the samples.
    """

    def kernel(x_BD: Tensor) -> Tensor:
        unit = F.normalize(x_BD)
        cosine = unit @ unit.T
        terms = ((2 * gamma) ** p / math.factorial(p) * cosine.pow(p) for p in range(order + 1))
        return math.exp(-2 * gamma) * torch.stack(list(terms)).sum(0)

    return F.mse_loss(kernel(student_BD), kernel(teacher_BD))


def contrast_loss(positive_B: Tensor, negatives_BM: Tensor, num_samples: int) -> Tensor:
    """Noise-contrastive estimation of one critic of CRD (Tian et al. 2020, Eq. 18): sum over the draws, mean over B.

    -ln h(positive) - Σ ln(1 - h(negative)) with h(s) = s / (s + M/N).

    Args:
        positive_B, negatives_BM: exp(similarity/T)/Z of the sample itself and of M drawn ones.
        num_samples: N, the samples that negatives are drawn from.
    """
    noise = negatives_BM.shape[1] / num_samples
    hit = (positive_B / (positive_B + noise + _EPS)).log()
    miss = (noise / (negatives_BM + noise + _EPS)).log().sum(1)
    return -(hit + miss).mean()
