"""The losses that students are trained with. Logits in, a scalar out; nothing here has state.

Shapes: B samples of the batch, C classes.
"""

import torch.nn.functional as F
from torch import Tensor


def kd_loss(student_BC: Tensor, teacher_BC: Tensor, *, tau: float, scale_tau_squared: bool = True) -> Tensor:
    """Hinton's distillation loss: KL(softmax(teacher/τ) ‖ softmax(student/τ)), averaged over the batch.

    Args:
        student_BC, teacher_BC: float (B, C), raw logits.
        tau: temperature, above 0.
        scale_tau_squared: multiply by τ², which keeps the gradient's size independent of τ (Hinton et al. 2015, section
            2.1; RepDistiller's DistillKL, with which the paper's numbers were made).

    Returns:
        Scalar in nats, 0 or more.
    """
    log_p_student = F.log_softmax(student_BC.float() / tau, dim=1)
    log_p_teacher = F.log_softmax(teacher_BC.float() / tau, dim=1)
    loss = F.kl_div(log_p_student, log_p_teacher, reduction="batchmean", log_target=True)
    return loss * tau**2 if scale_tau_squared else loss


def mixed_loss(cross_entropy: Tensor, kd: Tensor, alpha: float) -> Tensor:
    """(1 - alpha)·CE + alpha·KD: the paper's Eq. 2. alpha is the weight of distillation, 0 … 1."""
    return (1 - alpha) * cross_entropy + alpha * kd
