"""Packets of MPEG-4 part 2: which of them hold a frame."""

from types import SimpleNamespace

import av
import pytest

from video_diffusion_pytorch.data.formats.movies import is_coded

START = b"\0\0\1\xb6"


class Packet(bytes):
    """What is asked of PyAV's packet."""

    header = b""

    @property
    def size(self):
        return len(self)

    @property
    def stream(self):
        return SimpleNamespace(codec_context=SimpleNamespace(extradata=self.header))


def header(bits):
    return b"\0\0\1\x20" + int(bits.ljust(-(-len(bits) // 8) * 8, "0"), 2).to_bytes(
        -(-len(bits) // 8), "big"
    )


@pytest.mark.parametrize("version", ["0", "1" + "0001" + "001"])
@pytest.mark.parametrize("shape", ["0001", "1111" + "00000001" * 2])
@pytest.mark.parametrize("control", ["0", "1" + "0110", "1" + "0101" + "1" * 79])
@pytest.mark.parametrize(("resolution", "length"), [(1, 1), (25, 5), (30000, 15)])
def test_frames_that_are_not_coded(version, shape, control, resolution, length):
    layer = "0" + "00000001" + version + shape + control + "00" + "1" + f"{resolution:016b}" + "1"
    for coded in (True, False):
        bits = "01" + "110" + "1" + "1" * length + "1" + str(int(coded))
        bits = bits.ljust(40, "0")
        packet = Packet(START + int(bits, 2).to_bytes(5, "big"))
        packet.header = header(layer)
        assert is_coded(packet) is coded


@pytest.mark.parametrize("data", [b"", START, b"\0" * 8, START + b"\xff" * 8, START + bytes(90)])
@pytest.mark.parametrize("extradata", [None, b"", b"\0\0\1\x20", b"\0\0\1\x20" + b"\xff" * 40])
def test_what_cannot_be_understood_counts_as_a_frame(data, extradata):
    packet = Packet(data)
    packet.header = extradata
    assert is_coded(packet)


def test_frames_of_an_encoder_are_coded(write_movie):
    with av.open(str(write_movie("clip.avi", codec="mpeg4", options={"bf": "2"}))) as container:
        assert all(is_coded(packet) for packet in container.demux(video=0) if packet.size)
