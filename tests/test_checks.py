"""Where the values are that every method is held to: the scores and selections of the papers, worked out by hand."""

import ast

import pytest
from helpers import TESTS

CHECKS = {
    "EL2N of uniform and of given logits, at most √2": (
        "test_scores: test_el2n_of_a_uniform_prediction, test_el2n_of_a_row, test_el2n_is_at_most_the_root_of_two"
    ),
    "GraNd of the last layer with and without bias, by autograd": (
        "test_scores: test_last_layer_grand_equals_autograd; "
        "test_scoring: test_grand_in_closed_form_equals_autograd_on_a_cifar_resnet"
    ),
    "GraNd whatever the batch; DeepCore's short last batch": (
        "test_scores: test_deepcore_inflates_the_short_last_batch; "
        "test_scoring: test_grand_does_not_depend_on_the_batch_but_deepcores_does"
    ),
    "forgetting, never-learned samples, sums over runs": (
        "test_scores: test_forgetting_counts_from_correct_to_incorrect, "
        "test_never_learned_samples_count_by_policy, test_forgetting_adds_up_over_runs"
    ),
    "AUM on probabilities": "test_scores: test_aum_is_on_probabilities",
    "DUAL over windows": "test_scores: test_dual_scores",
    "the Beta density of DUAL": "test_dual: test_beta_parameters_of_dual",
    "water-filling; more than there is": "test_select: test_water_filling, test_more_than_there_is_cannot_be_kept",
    "CCS of negative and of constant scores": (
        "test_select: test_ccs_bins_scores_below_zero, test_ccs_of_constant_scores_still_returns_what_was_asked_for"
    ),
    "rounded counts, none of none": (
        "test_select: test_fractions_are_rounded_to_the_nearest_count, test_nothing_is_kept_where_nothing_is_asked_for"
    ),
    "memorization by four networks": "test_scores: test_memorization_of_four_networks",
    "Moderate by mean and by median": "test_select: test_moderate_keeps_the_middle_distances_from_the_centre",
    "D2 on three points": "test_graph: test_forward_passing_on_three_points, test_picking_three_points",
    "hard, moderate and easy of ten": "test_select: test_levels_of_ten_scores",
    "SVHN in proportional and in equal shares": (
        "test_select: test_proportional_shares_of_svhn_are_the_rounded_ones, test_equal_shares_of_svhn_run_out_of_nines"
    ),
    "a bitmap of ImageNet": "test_bitmap: test_a_bitmap_of_imagenet",
    "equal scores on every platform": (
        "test_select: test_equal_scores_give_the_random_mask_of_the_seed, "
        "test_ties_are_broken_as_in_earlier_versions_and_on_other_machines"
    ),
    "batches in any order, shards of ranks": (
        "test_scores: test_neither_the_order_of_batches_nor_shards_of_ranks_change_a_bit; "
        "test_recording: test_ranks_that_are_killed_and_resumed_record_their_logged_trace"
    ),
    "published scores, permuted and spoilt": (
        "test_imports: test_a_permuted_csv_with_file_names_gives_the_same_mask, test_a_spoilt_csv_is_one_line, "
        "test_nothing_is_unpickled, test_scores_of_another_data_set_are_refused"
    ),
    "weighted draws against numpy's": (
        "test_dual: test_weighted_draws_include_samples_as_often_as_numpy_does, "
        "test_weights_that_cannot_be_drawn_by_are_refused"
    ),
}
"""What is checked: the tests that hold it, by file."""


@pytest.mark.parametrize("what", CHECKS)
def test_the_tests_of_every_check_are_there(what):
    for part in CHECKS[what].split("; "):
        file, _, names = part.partition(": ")
        tree = ast.parse(next(TESTS.rglob(f"{file}.py")).read_text(encoding="utf-8"))
        there = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        assert set(names.split(", ")) <= there


def test_there_are_twenty():
    assert len(CHECKS) == 20
