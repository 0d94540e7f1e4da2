"""A run's networks and workers in the tests' own process."""

import dataclasses

import numpy as np

import a3c_pong
import pong_actor
from runtime.actors import Actors
from runtime.global_network import GlobalNetwork
from runtime.launch import Launch

GAME = pong_actor.Game("Pong-v0", num_actions=6, frames_per_step=3.0)


class InProcess(Launch):
    """The start of a run that leaves no folder, with any number of workers.

    At the end of a `with` its actors are gone.
    """

    folder = output = None

    def __init__(self, settings, workers=1, dtype="float32", seed=None, play=True):
        """play: whether actors are started; else there are only their workers' networks."""
        self.settings = dataclasses.replace(settings, seed=settings.seed if seed is None else seed)
        self.workers, self.dtype, self.play = workers, dtype, play
        self.actors, self.notices = None, []

    def __enter__(self):
        return self

    def start_actors(self, policy_units, ahead):
        settings = self.settings
        sizes = settings.global_iteration_update, 6400 * settings.frames, policy_units
        self.actors = Actors(GAME, settings.seed, sizes, ahead)
        for number in range(self.workers):
            if self.play:
                self.actors.start(f"W_{number}")
            else:
                self.actors[f"W_{number}"] = None
        return self.actors

    def global_network(self, session):
        return GlobalNetwork(session, self.settings, self.dtype)

    def build(self):
        """Build a graph of its own; return the `Run` and the workers."""
        a3c_pong.load_tensorflow()
        with a3c_pong.tf.Graph().as_default():
            return a3c_pong.build(self)


def new_policies(settings, number):
    """Return `PolicyWeights` of zeros, as many as asked for."""
    shapes = (6400 * settings.frames, 300), (300,), (300, 6), (6,)
    return [
        pong_actor.PolicyWeights(*(np.zeros(shape, np.float32) for shape in shapes))
        for _ in range(number)
    ]
