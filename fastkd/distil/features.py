"""The losses on feature maps: how a student's maps are made like its teacher's. Maps in, a scalar out; no state.

Shapes: B samples of the batch, D channels, H rows, W columns; a student and a teacher may differ in all but B. Where a
loss compares position by position and the sizes differ, the larger map is averaged down to the smaller one. Weights are
applied by the caller. The forms are those of RepDistiller's code, with which the paper's Table 1 was made, except where a
docstring says otherwise.
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def same_size(student_BDHW: Tensor, teacher_BDHW: Tensor) -> tuple[Tensor, Tensor]:
    """Both maps at the smaller of the two sizes, averaged down."""
    height, width = (min(a, b) for a, b in zip(student_BDHW.shape[2:], teacher_BDHW.shape[2:], strict=True))
    size = (height, width)
    student, teacher = (
        x if tuple(x.shape[2:]) == size else F.adaptive_avg_pool2d(x, size) for x in (student_BDHW, teacher_BDHW)
    )
    return student, teacher


def attention_map(features_BDHW: Tensor) -> Tensor:
    """Mean over channels of the squares, of length 1: (B, HW)."""
    return F.normalize(features_BDHW.pow(2).mean(1).flatten(1))


def at_loss(student_BDHW: Tensor, teacher_BDHW: Tensor) -> Tensor:
    """Attention transfer: mean square difference of the attention maps (Zagoruyko & Komodakis 2017, p = 2)."""
    student, teacher = same_size(student_BDHW, teacher_BDHW)
    return (attention_map(student) - attention_map(teacher)).pow(2).mean()


def ft_loss(student_factor: Tensor, teacher_factor: Tensor) -> Tensor:
    """Factor transfer: mean absolute difference of the factors' attention maps (Kim et al. 2018, p = 1)."""
    student, teacher = same_size(student_factor, teacher_factor)
    return (attention_map(student) - attention_map(teacher)).abs().mean()


def sp_loss(student_BDHW: Tensor, teacher_BDHW: Tensor) -> Tensor:
    """Similarity preserving: ‖rows(FsFsᵀ) - rows(FtFtᵀ)‖² / B², rows of length 1 (Tung & Mori 2019, Eq. 4)."""

    def similarity(features: Tensor) -> Tensor:
        flat = features.flatten(1)
        return F.normalize(flat @ flat.T)

    return (similarity(student_BDHW) - similarity(teacher_BDHW)).pow(2).mean()


def hint_loss(regressed_BDHW: Tensor, teacher_BDHW: Tensor) -> Tensor:
    """FitNets' hint: mean square difference of the student's regressed map (Romero et al. 2015, Eq. 3)."""
    return F.mse_loss(*same_size(regressed_BDHW, teacher_BDHW))


def vid_loss(mean_BDHW: Tensor, teacher_BDHW: Tensor, variance_D: Tensor) -> Tensor:
    """Variational information distillation: ½·mean((μ - t)²/σ² + ln σ²) (Ahn et al. 2019, Eq. 5); may be negative.

    Args:
        mean_BDHW: μ, regressed from the student, with the teacher's channels.
        variance_D: σ² of each of the teacher's channels, above 0, trained with the rest.
    """
    mean, teacher = same_size(mean_BDHW, teacher_BDHW)
    variance = variance_D.view(1, -1, 1, 1)
    return 0.5 * ((mean - teacher).pow(2) / variance + variance.log()).mean()


def nst_loss(student_BDHW: Tensor, teacher_BDHW: Tensor) -> Tensor:
    """Neuron selectivity transfer: squared MMD of the channels' patterns, kernel (xᵀy)² (Huang & Wang 2017, Eq. 5).

    Channels are vectors over space, of length 1; a sample's D² pairs are averaged, then the samples.
    """
    student, teacher = (F.normalize(x.flatten(2), dim=2) for x in same_size(student_BDHW, teacher_BDHW))

    def kernel(x_BDS: Tensor, y_BDS: Tensor) -> Tensor:
        return torch.bmm(x_BDS, y_BDS.transpose(1, 2)).pow(2).mean()

    return kernel(teacher, teacher) + kernel(student, student) - 2 * kernel(student, teacher)


def ab_loss(connected_BDHW: Tensor, teacher_BDHW: Tensor, margin: float = 1.0) -> Tensor:
    """Activation boundaries: squared distance to the margin where the sides of 0 differ (Heo et al. 2019, Eq. 6).

    A teacher's value above 0 asks for a student's above the margin, any other for one below its negative. Sum over
    channels and positions, mean over the batch; only the sign of the teacher counts, so its maps may come after a ReLU.
    RepDistiller's scale of the layers is in `Boundaries`.

    Args:
        connected_BDHW: the student's map through its connector, with the teacher's channels, before a ReLU.
    """
    student, teacher = same_size(connected_BDHW, teacher_BDHW)
    lacking = F.relu(torch.where(teacher > 0, margin - student, margin + student))
    return lacking.pow(2).sum() / len(student)


def flow(first_BDHW: Tensor, second_BDHW: Tensor) -> Tensor:
    """FSP matrix of two layers, the mean over positions of the products of channels: (B, D1, D2)."""
    first, second = (x.flatten(2) for x in same_size(first_BDHW, second_BDHW))
    return torch.bmm(first, second.transpose(1, 2)) / first.shape[2]


def fsp_loss(student: tuple[Tensor, Tensor], teacher: tuple[Tensor, Tensor]) -> Tensor:
    """Flow of solution procedure: mean square difference of the FSP matrices (Yim et al. 2017, Eq. 2).

    Args:
        student, teacher: maps of two layers each, of the same numbers of channels.
    """
    return F.mse_loss(flow(*student), flow(*teacher))
