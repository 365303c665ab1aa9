"""Small movies, made by PyAV as the tests ask for them."""

from fractions import Fraction

import av
import numpy as np
import pytest


def picture(number, size=(64, 48)):
    """A pattern that moves to the right, with the frame's number as the shade of its corner."""
    generator = np.random.default_rng(0)
    blocks = generator.integers(0, 255, (size[1] // 8, size[0] // 8, 3), np.uint8)
    pixels = np.roll(blocks.repeat(8, 0).repeat(8, 1), 3 * number, axis=1)
    pixels[:8, :8] = 6 * number % 256
    return pixels


@pytest.fixture
def write_movie(tmp_path):
    """Writes a movie: its name's ending chooses the container; gives its path."""

    def write(
        name,
        codec="libx264",
        pixels="yuv420p",
        num_frames=40,
        options=None,
        rate=10,
        times=None,  # of the frames, in milliseconds
        rotation=None,
        make=picture,
        made_as="rgb24",
        shape=None,  # of a pixel, width by height
        durations=None,  # of the frames, in milliseconds
        size=None,  # height and width, where an array has other ones
    ):
        path = tmp_path / name
        with av.open(str(path), "w") as container:
            stream = container.add_stream(codec, rate=rate, options=options or {})
            stream.height, stream.width = size or make(0).shape[:2]
            stream.pix_fmt = pixels
            stream.codec_context.gop_size = 10
            if rotation is not None:
                stream.set_display_rotation(rotation)
            if shape is not None:
                stream.codec_context.sample_aspect_ratio = shape
            if durations is not None:
                stream.codec_context.time_base = Fraction(1, 1000)
            packets = []
            for number in range(num_frames):
                frame = av.VideoFrame.from_ndarray(make(number), format=made_as)
                if times is not None:
                    frame.pts, frame.time_base = times[number], Fraction(1, 1000)
                packets += stream.encode(frame)
            for packet in packets + stream.encode():
                if durations is not None:
                    packet.duration = durations[times.index(packet.pts)]
                container.mux(packet)
        return path

    return write
