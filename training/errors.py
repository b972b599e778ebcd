"""What can be wrong with a training run's inputs."""


class TrainingError(Exception):
    """Root of the errors of `training`; the message is for the person at the terminal."""


class ConfigError(TrainingError):
    """A configuration that does not follow the schema; the message holds each key's path."""


class DataError(TrainingError):
    """A data set that cannot be read, or that does not fit the configuration."""


class CheckpointError(TrainingError):
    """A checkpoint of another configuration, other data, or none at all."""
