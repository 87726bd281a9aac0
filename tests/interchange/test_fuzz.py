"""Mutated files from elsewhere: refused in one line, or taken as what they are; in bounded memory."""

import resource

import fuzz_convert
import pytest
from caffe_made import inner

from alexnet_mp.interchange import caffe_files

pytestmark = pytest.mark.usefixtures("one_thread", "quick")


@pytest.mark.run
def test_a_few_mutated_files_are_refused_or_taken_as_what_they_are():
    result = fuzz_convert.run(inputs=300, seed=2)
    assert result.failures == [] and result.refused > 150 and result.loaded > 20


@pytest.mark.slow
def test_a_hundred_thousand_mutated_files():
    result = fuzz_convert.run(inputs=100_000, seed=0)
    assert result.failures == [] and result.memory < 100e6 and result.loaded > 10_000


def test_many_empty_messages_take_no_memory():
    """In the library an empty message of two bytes takes sixteen and more."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    messages = b"\x3a\x00" * (8 << 20)
    for content in (b"\x12\x00" * (8 << 20), inner(100, messages), inner(100, inner(7, b"\x2a\x00" * (4 << 20)))):
        with pytest.raises(ValueError, match="more than 10,000 fields"):
            caffe_files.read_net(content)
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 6 * (16 << 20)
