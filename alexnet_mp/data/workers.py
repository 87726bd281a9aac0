"""Processes that read images beside the training: they end with it, and whatever ends one of them reaches the training
as one line."""

import ctypes
import errno
import multiprocessing.util
import os
import signal
import sys
import threading
import warnings
from contextlib import contextmanager, suppress

from torch._utils import ExceptionWrapper
from torch.utils.data import DataLoader
from torch.utils.data._utils import signal_handling
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from ..system.errors import UserError

PATIENCE = 3  # seconds that workers have for what they are reading when they are told to end
WITHOUT = "--workers 0 reads without such processes"
_WAITING = []  # not empty while this process waits for its workers


def load(source, keys, workers, pin=False):
    """source[key] for every key (None: 0, 1, ...), in order, computed by `workers` forked processes, 0 = by this one.

    A UserError that the source returns is raised here. pin: tensors come in page-locked memory. Close it to end the
    workers. Raises UserError where processes can't be started, or can't hand over what they have read."""
    items = None
    try:
        if workers:
            _make_temporary_directory()
        # from the fork on: a worker has no moment in which a signal could end it
        with warnings.catch_warnings(), signals_held():
            # more workers than cores: the user's choice
            warnings.filterwarnings("ignore", "This DataLoader will create")
            loader = DataLoader(
                source,
                batch_size=None,
                sampler=keys,
                num_workers=workers,
                pin_memory=pin,
                multiprocessing_context="fork" if workers else None,
                worker_init_fn=_begin_worker,
            )
            items = _Workers(loader) if workers else iter(loader)
        for item in items:
            # from a worker, handed over whole: DataLoader would wrap it in its traceback
            if isinstance(item, UserError):
                raise item
            yield item
    finally:
        if workers and items is not None:  # at once: workers don't hear the signal that would end them at exit
            items.end()


def _make_temporary_directory():
    """Workers have a socket in it, by which the parent gets what they share. As the parent's it is removed when it
    ends, and not left behind by a worker that is killed."""
    try:
        multiprocessing.util.get_temp_dir()
    except OSError as error:
        raise UserError(
            f"processes that read images need a directory for temporary files ({error.strerror or error}); set TMPDIR "
            f"to one that can be written to; {WITHOUT}"
        ) from None


class _Workers(_MultiProcessingDataLoaderIter):
    """DataLoader's iterator, without what it leaves behind where it can't start all its processes or one of them
    hangs."""

    def __init__(self, loader):
        try:
            super().__init__(loader)
            _tell_of_deaths_only_to_who_waits()
        except BaseException as error:
            self._shutdown = True  # else `__del__` would look for what isn't there yet
            self._kill()
            self._join()
            if isinstance(error, OSError):
                raise _not_started(error) from None
            raise

    def _try_get_data(self, *timeout):
        try:
            with _waiting():
                return super()._try_get_data(*timeout)
        # from the socket of a worker that dies, and isn't seen to be dead yet
        except (EOFError, ConnectionError) as error:
            raise RuntimeError("DataLoader worker (pid unknown) hung up") from error

    def _shutdown_workers(self):
        """Also called by DataLoader, when all items were taken. A worker that hangs in a read (a network file system)
        is killed."""
        if self._shutdown:
            return
        if self._worker_pids_set:  # a worker that dies from now on is no error
            signal_handling._remove_worker_pids(id(self))
            self._worker_pids_set = False
        # the method below waits ten seconds for each worker, one after the other
        killer = threading.Timer(PATIENCE, self._kill)
        with suppress(RuntimeError):  # no thread starts any more when the interpreter ends
            killer.start()
        try:
            super()._shutdown_workers()
        finally:
            killer.cancel()

    def end(self):
        try:
            self._shutdown_workers()
        finally:
            self._kill()
            self._join()

    def _kill(self):
        for worker in getattr(self, "_workers", []):
            if worker.is_alive():
                worker.kill()

    def _join(self):
        for worker in getattr(self, "_workers", []):
            worker.join()


def _tell_of_deaths_only_to_who_waits():
    """PyTorch's handler of SIGCHLD, which raises where a worker has died, does so no more wherever this process is just
    then.

    In the middle of an update of the weights it would leave a step that was half taken. It is needed where an item is
    waited for: a worker that dies while it writes one leaves a pipe in which the rest never comes."""
    handler = signal.getsignal(signal.SIGCHLD)
    if (
        callable(handler)
        and not hasattr(handler, "whoever_waits")
        and threading.current_thread() is threading.main_thread()
    ):

        def only_waiting(number, frame):
            if _WAITING:
                handler(number, frame)

        only_waiting.whoever_waits = True
        signal.signal(signal.SIGCHLD, only_waiting)


@contextmanager
def _waiting():
    """An item of the workers is waited for here: should one of them have died, or die now, a RuntimeError says so."""
    _WAITING.append(True)
    try:
        signal_handling._error_if_any_worker_fails()
        yield
    finally:
        _WAITING.pop()


def _not_started(error):
    """A UserError, of what the system refused. Semaphores are files in /dev/shm, but the error names none."""
    limits = (errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE)
    where = "" if error.errno in limits else "/dev/shm, which they need, can't be used or is full: "
    return UserError(f"can't start processes that read images: {where}{error.strerror or error}; {WITHOUT}")


def _begin_worker(_):
    die_with_parent()
    # The thread that hands file descriptors to the parent reports a parent that hangs up, as one that is stopped does.
    sys.excepthook = lambda *_: None
    multiprocessing.queues.Queue._on_queue_feeder_error = _hand_over_the_reason
    signal.signal(signal.SIGBUS, signal.SIG_DFL)  # PyTorch's handler prints; the parent says it


def _hand_over_the_reason(queue, error, answer):
    """In a worker, when its thread that sends (key's number, item) can't: the reason takes the item's place.

    The standard library prints it and drops the item, for which the parent would wait for ever.
    """
    if not isinstance(answer, tuple):  # bytes: the pipe to the parent is broken
        os._exit(1)
    number, item = answer
    text = str(error).partition("\n")[0]
    # of a class that the parent can't look up
    if isinstance(item, ExceptionWrapper) and item.exc_type is not RuntimeError:
        reason, item.exc_type = item, RuntimeError
    elif isinstance(item, (UserError, ExceptionWrapper)):  # not even that
        os._exit(1)
    elif "</torch_" in text:  # a RuntimeError of PyTorch's that names a file in /dev/shm
        reason = UserError(
            f"/dev/shm, through which processes that read images hand them over: {text.rpartition('>: ')[2]}; "
            f"make it larger (docker run --shm-size), or use fewer --workers; {WITHOUT}"
        )
    elif isinstance(error, OSError):
        reason = UserError(
            f"a process that reads images can't hand them over ({text}; TMPDIR is "
            f"{multiprocessing.util.get_temp_dir()}); {WITHOUT}"
        )
    else:
        reason = ExceptionWrapper(where="in a process that reads images, when it handed them over")
    queue.put((number, reason))


@contextmanager
def signals_held():
    """Ctrl-C, a closing terminal and a scheduler's SIGTERM reach every process of a run; the parent decides and ends
    the workers.

    Workers that are forked in this context inherit the blocked signals for good; the parent hears what came as soon as
    it is over."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM, signal.SIGHUP))
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def die_with_parent():
    """In a worker: should the parent die without a word, the kernel ends it too (PR_SET_PDEATHSIG, prctl(2))."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and os.getppid() != parent.pid:  # it died before that
        os._exit(1)
