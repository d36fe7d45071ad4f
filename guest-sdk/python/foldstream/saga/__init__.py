"""Sagas: processes of several steps that others carry out, each of which can be undone."""

from .definition import Call, Compensation, Pattern, RetryPolicy, Saga, SagaMessage, Step
from .instance import Instance, Status
from .sagas import Handled, Ignored, Sagas

__all__ = [
    "Call",
    "Compensation",
    "Handled",
    "Ignored",
    "Instance",
    "Pattern",
    "RetryPolicy",
    "Saga",
    "SagaMessage",
    "Sagas",
    "Status",
    "Step",
]
