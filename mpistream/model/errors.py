"""Errors a user can mend: each names the remedy."""


class MpistreamError(Exception):
    """A request that cannot be met, or a run that failed, with what to do about it.

    The command line prints ``message`` and ``remedy`` without a traceback and exits with 1.
    """

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message}\n  {self.remedy}" if self.remedy else self.message


class ConfigError(MpistreamError):
    """The configuration file or an option is wrong."""


class SourceError(MpistreamError):
    """The frames' source (sector files, simulator) cannot be read as asked."""


class ReferenceImageError(MpistreamError):
    """A dark or gain reference does not fit the detector."""


class CalibrationError(MpistreamError):
    """Thresholds could not be derived from the sample."""


class StorageError(MpistreamError):
    """The dataset cannot be written or read."""


class NoRoomError(StorageError):
    """A disk is full, or a quota is used up: once there is space, the same may succeed."""


class CoordinationError(MpistreamError):
    """What etcd holds contradicts this process."""


class EtcdUnreachable(CoordinationError):
    """etcd does not do what it is asked, but may do so later: most often it does not answer."""


class EtcdRefuses(EtcdUnreachable):
    """etcd answers, but cannot do this for now: it is out of space, for instance."""


class SchedulerError(MpistreamError):
    """The cluster's scheduler refuses, fails or does not answer."""


class SchedulerAbsent(SchedulerError):
    """Its commands are not installed here."""


class ProtocolError(MpistreamError):
    """A message that this version does not understand."""


class ScanFailed(MpistreamError):
    """The scan ended without a dataset."""
