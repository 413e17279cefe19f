from __future__ import annotations

import signal
import subprocess
import sys
import threading

import pytest
import torch

from trispade.errors import InputError, exit_on_sigterm, find_input_error


@pytest.fixture(autouse=True)
def _own_handlers():
    """Give Python's own handlers to a test, and pytest's back after it."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


def wrapped(error: BaseException) -> BaseException:
    try:
        try:
            raise error
        except type(error) as inner:
            raise RuntimeError("a library has wrapped it") from inner
    except RuntimeError as outer:
        return outer


def test_an_input_error_is_found_in_what_libraries_wrap_it_in():
    error = InputError("that is wrong")
    assert find_input_error(wrapped(error)) is error
    assert find_input_error(wrapped(ValueError("a fault of the software"))) is None
    assert find_input_error(None) is None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        MemoryError("Unable to allocate 9. GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: you tried to"),
    ],
)
def test_a_lack_of_memory_says_what_to_lower(error):
    with pytest.raises(
        InputError, match=r"memory: expected room for the run, got '.*allocate .* Lower slice_batch_size"
    ):
        raise find_input_error(wrapped(error))


def test_sigterm_ends_the_program_with_its_exit_code_and_one_line(capfd):
    exit_on_sigterm()
    with pytest.raises(SystemExit, match=r"^143$"):
        signal.raise_signal(signal.SIGTERM)
    assert capfd.readouterr().err == "\ntrispade: stopped; the same command goes on\n"


def test_a_programs_own_handler_of_sigterm_is_left_alone():
    received = []
    signal.signal(signal.SIGTERM, lambda number, frame: received.append(number))
    exit_on_sigterm()
    signal.raise_signal(signal.SIGTERM)
    assert received == [signal.SIGTERM]


def test_outside_the_main_thread_no_handler_is_set():
    thread = threading.Thread(target=exit_on_sigterm)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_ctrl_c_ends_a_program_that_runs_a_config_with_one_line_and_the_code_of_an_interrupt():
    code = "from trispade.errors import show_input_errors_as_one_line as show; show(); raise KeyboardInterrupt"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode in (-signal.SIGINT, 130)  # a shell gives 130 for both
    assert result.stderr == "trispade: stopped; the same command goes on\n"
