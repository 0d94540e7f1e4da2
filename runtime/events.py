"""TensorBoard's event files.

They are written without TensorFlow's FileWriter. On a full disk that one leaves a torn record,
after which readers stop; it prints a traceback from its own thread, and says no more.
"""

import struct
import time

import google_crc32c

from runtime.checkpoints import append
from runtime.graph import tf


def masked_crc32c(content):
    """Return the checksum of bytes as TFRecord files have it, [4] bytes."""
    crc = google_crc32c.value(content)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) % 2**32)


def tf_record(content):
    """Return bytes as a record of a TFRecord file."""
    length = struct.pack("<Q", len(content))
    return length + masked_crc32c(length) + content + masked_crc32c(content)


class EventFile:
    """An event file, the next one in a run's folder of them; it appears with its first events."""

    def __init__(self, folder, agent_steps, games):
        """agent_steps, games: those played before."""
        numbers = [path.suffix[1:] for path in folder.glob("events.out.tfevents.*")]
        number = max((int(text) + 1 for text in numbers if text.isdecimal()), default=0)
        self.path = folder / f"events.out.tfevents.{number:04}"
        self.length, self.games = 0, games
        self.unwritten = [tf.Event(file_version="brain.Event:2", wall_time=time.time())]
        if agent_steps:  # TensorBoard forgets the other files' events from there on
            resumed = tf.Event(step=agent_steps + 1, wall_time=time.time())
            resumed.session_log.status = resumed.session_log.START
            self.unwritten.append(resumed)

    def write(self, episodes, measured):
        """Append new games and measured figures. On OSError nothing is lost: the next call writes.

        Args:
            episodes: the curve, a list of `Episode`.
            measured: list of (agent steps, dict of name -> number).
        """
        new = episodes[self.games :]
        self.games += len(new)
        figures = list(measured)
        for e in new:
            score = {"game/score": e.score, "game/running_score": e.running_score}
            figures.append((e.agent_steps, score))
        for step, numbers in sorted(figures, key=lambda figure: figure[0]):
            event = tf.Event(step=step, wall_time=time.time())
            for name, number in numbers.items():
                event.summary.value.add(tag=name, simple_value=number)
            self.unwritten.append(event)
        if any(event.HasField("summary") for event in self.unwritten):
            self.path.parent.mkdir(exist_ok=True)
            self.path.touch()
            records = [tf_record(event.SerializeToString()) for event in self.unwritten]
            append(self.path, self.length, b"".join(records))
            self.length += sum(map(len, records))
            self.unwritten = []
