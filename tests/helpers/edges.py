"""The ways in which FFCV's loader hangs, leaks or lies: what it does, how that is closed, and the tests that hold it, in
test_ffcv_edges.py or in others."""

EDGES: dict[str, tuple[str, str, list[str]]] = {
    "S1": (
        "an exception in the producer's thread kills it, and the loop waits for ever",
        "a worker's exception is raised where its batch would have come",
        [
            "test_loader.test_a_corrupt_jpeg_is_named_where_its_batch_would_have_come",
            "test_loader.test_an_error_of_the_jobs_reaches_the_caller_and_leaves_no_threads",
            "test_an_exception_of_any_kind_in_a_worker_reaches_the_caller",
        ],
    ),
    "S2": (
        "leaving a loop early leaks its thread and its memory",
        "the end of the iterator, however it comes, ends its threads",
        [
            "test_loader.test_leaving_a_loop_early_leaves_no_threads",
            "test_loader.test_an_error_in_the_loop_leaves_no_threads",
        ],
    ),
    "S3": (
        "a batch that is held changes when later ones are made",
        "a batch's memory is its own until nothing holds any part of it",
        [
            "test_loader.test_a_batch_that_was_handed_out_never_changes",
            "test_loader.test_any_part_of_a_batch_keeps_all_of_its_memory",
        ],
    ),
    "S4": (
        "a boolean mask as indices ends in a hang",
        "refused, with the way out",
        ["test_loader_arguments.test_ids_that_name_no_samples_are_refused"],
    ),
    "S5": (
        "an index out of range reads foreign memory, -1 the last sample",
        "ids are checked when the loader is made, and again where batches are named one by one",
        [
            "test_loader_arguments.test_ids_that_name_no_samples_are_refused",
            "test_loader_arguments.test_a_batch_that_names_what_is_not_there_is_refused",
        ],
    ),
    "S6": (
        "a corrupt JPEG comes out as the previous image under the new label",
        "what the decoder returns is looked at; CorruptError names the sample",
        [
            "test_loader.test_a_corrupt_jpeg_is_named_where_its_batch_would_have_come",
            "test_damaged_jpegs.test_a_damaged_image_does_not_show_in_the_next",
        ],
    ),
    "S7": (
        "a loader takes the decoder out of the caller's list, so that a second one decodes otherwise",
        "what a loader is given is not changed; its operation is its own",
        ["test_two_loaders_of_one_beton_and_one_views_object_are_alike"],
    ),
    "S8": (
        "an order of one's own is refused",
        "the order is an argument: `run` takes any sequence of batches",
        ["test_loader.test_batches_that_are_named_come_in_the_order_of_their_names"],
    ),
    "S9": (
        "a compiled operation after a Python one loops for ever",
        "cannot occur: there are no operations for the caller to chain; a loader has one compiled stage",
        [],
    ),
    "S10": (
        "fewer samples than a batch give no batch, and no message",
        "drop_last is off unless asked for, and then refused",
        [
            "test_loader_arguments.test_fewer_samples_than_a_batch_that_has_to_be_full_are_refused",
            "test_loader.test_the_last_batch_is_what_is_left",
        ],
    ),
    "S11": (
        "the page-wise order depends on history, fails on some subsets, and does not work with several ranks",
        "`pages` is a pure function of (seed, epoch) of any ids, the same for all ranks",
        [
            "test_order.test_a_paged_epoch_is_a_permutation_of_the_ids_and_the_same_again",
            "test_ranks_share_an_epoch_in_pages_order",
        ],
    ),
    "S12": (
        "indices changed in place leave the length and the order stale",
        "a loader's ids are its own copy, and another mask is another loader, whose beton need not be opened again",
        ["test_a_loader_does_not_change_with_the_ids_that_it_was_given"],
    ),
    "S13": (
        "ranks repeat samples to get equal shards",
        "no padding: every sample comes once, and ranks differ by one sample a batch",
        [
            "test_loader_pixels.test_two_ranks_see_each_sample_once_and_as_one_rank_would",
            "test_order.test_ranks_differ_by_at_most_one_sample_in_any_batch",
        ],
    ),
    "S14": (
        "two loaders in two threads abort the process under Numba's workqueue layer",
        "no compiled loop here is parallel: the threads are Python's, so that layer is never started",
        [
            "test_loader_pixels.test_two_loaders_in_two_threads_do_not_disturb_each_other",
            "test_two_threads_load_under_numbas_workqueue_layer",
        ],
    ),
    "S15": (
        "more workers than cores are an error, and the last loader sets the threads of all and of torch",
        "workers are threads of one loader's own, any number of them; torch's are left alone",
        [
            "test_more_workers_than_cores_change_nothing_but_the_number_of_threads",
            "test_loader.test_importing_the_loader_leaves_torchs_threads_and_numbas_dictionary_as_they_are",
        ],
    ),
    "S16": (
        "a device by its name is an AttributeError, a GPU that is not there fails late",
        "devices go by torch's names and are looked at when the loader is made",
        ["test_a_device_goes_by_its_name", "test_a_device_that_is_not_there_is_refused_at_once"],
    ),
    "S17": (
        "a batch of one sample loses its first axis",
        "shapes do not depend on the number of samples",
        ["test_a_batch_of_one_has_the_axes_of_any_other"],
    ),
    "S18": (
        "importing it fails on Python 3.12 without setuptools",
        "fastkd asks for setuptools there",
        ["test_setuptools_is_asked_for_where_ffcv_needs_its_distutils"],
    ),
    "S19": (
        "none: it works with current numpy, Numba and torch",
        "all tests here run with them",
        ["test_build.test_stock_ffcv_reads_every_label"],
    ),
    "S20": (
        "normalising on a GPU imports cupy and uses GPU 0",
        "cannot occur: batches are uint8, and models normalise by torch on their own device; cupy is not imported",
        ["test_loading_imports_no_gpu_library_but_torch"],
    ),
    "S21": (
        "crashes and warnings where processes are forked",
        "no threads live between epochs; a forked process loads as any other, one that goes on in a loop is told",
        [
            "test_a_process_that_is_forked_after_loading_loads_the_same",
            "test_a_forked_process_cannot_go_on_in_the_loop_of_its_parent",
            "test_a_loader_works_inside_the_workers_of_torchs_dataloader",
        ],
    ),
    "S22": (
        "needs OpenCV with its display libraries, and pixels follow the OpenCV that is installed",
        "cannot be closed here, FFCV being needed: but pixels come from libjpeg-turbo alone",
        ["test_pixels.test_opencv_has_no_part_in_the_pixels"],
    ),
    "S23": (
        "whether there is a GPU is decided when it is imported",
        "decided for each loader, when it is made",
        ["test_no_code_asks_ffcv_whether_there_is_a_gpu"],
    ),
    "S24": (
        "each epoch makes CUDA streams and page-locks its memory anew, and memory grows",
        "blocks are used again; page-locked ones belong to torch, which does the same; no streams are made",
        [
            "test_loader.test_epochs_take_no_more_memory_than_the_batches_under_way",
            "test_a_hundred_epochs_take_the_memory_of_ten",
            "test_epochs_on_a_gpu_take_no_more_memory_than_the_first",
        ],
    ),
    "W1": (
        "an image that cannot be read hangs the writer and leaves shared memory behind",
        "the build stops with the name of the image, or of what happened to the worker",
        [
            "test_build_ends.test_a_cut_jpeg_stops_the_build_with_its_name_and_leaves_no_file",
            "test_build_ends.test_a_worker_that_is_killed_ends_the_build_and_leaves_nothing",
        ],
    ),
    "W2": (
        "a killed writer's file opens",
        "a beton appears whole or not at all; a killed FFCV writer's is refused with the reason",
        ["test_malformed_betons.test_a_beton_whose_writer_was_killed_is_refused_with_the_reason"],
    ),
    "W3": (
        "a cut file misses samples, zeroed pages read as images",
        "tables are checked when a beton is opened, payloads by verify",
        [
            "test_malformed_betons.test_a_beton_that_is_cut_is_refused_wherever_it_is_cut",
            "test_beton.test_a_changed_payload_byte_is_found_with_its_sample",
        ],
    ),
}
