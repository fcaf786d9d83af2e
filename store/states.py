"""What a row can be, and what that means: a status enum a table, a sentence a state."""

from enum import StrEnum
from typing import Self


class State(StrEnum):
    """A string with a sentence; the API and the command line show the sentence."""

    sentence: str

    def __new__(cls, value: str, sentence: str) -> Self:
        member = str.__new__(cls, value)
        member._value_ = value
        member.sentence = sentence
        return member


class TaskStatus(State):
    ACTIVE = "active", "Captured, trained on and served."
    PAUSED = "paused", "Captured and served as before; no new training starts."
    IGNORED = "ignored", "Answered by the teacher; never extracted, trained on or routed."


class Server(State):
    TEACHER = "teacher", "The upstream model answered."
    STUDENT = "student", "The base model with the task's adapter answered."


class CaptureStatus(State):
    COMPLETE = "complete", "The whole answer reached the client."
    INCOMPLETE = "incomplete", "The stream broke, the client left or the proxy was killed; never trained on."
    FAILED = "failed", "The answer was an error, or there was none."


class KeyStatus(State):
    ACTIVE = "active", "Lets requests in."
    SPENT = "spent", "Its budget is spent: requests are refused until it is raised, or its next month begins."
    EXPIRED = "expired", "Its time is over: requests are refused."
    REVOKED = "revoked", "A person closed it for good."


class BudgetPeriod(State):
    TOTAL = "total", "The budget is for as long as the key lives."
    MONTH = "month", "The budget is for each calendar month, in UTC."


class ReviewKind(State):
    APPROVE = "approve", "A person found the answer right."
    REJECT = "reject", "A person found the answer wrong; it is not trained on."
    CORRECT = "correct", "A person wrote a better answer; it counts as the teacher's."
    TAG = "tag", "A person put labels on the capture; the answer's worth is unchanged."


class PairStatus(State):
    READY = "ready", "Fit to learn from."
    EXCLUDED = "excluded", "Not fit to learn from; the reason is on the row."


class Split(State):
    TRAIN = "train", "Learned from."
    VALIDATION = "validation", "Never trained on; recipes are compared and trainings stopped on it."
    HOLDOUT = "holdout", "Never trained on; the gate judges on it."


class DatasetStatus(State):
    FROZEN = "frozen", "Written, hashed, never changed again."
    ERASED = "erased", "Its file was removed because a pair in it had to be forgotten."


class RunStatus(State):
    QUEUED = "queued", "Waiting to be trained."
    RUNNING = "running", "Being trained; a run whose lease lapsed is taken up again at its last checkpoint."
    SUCCEEDED = "succeeded", "Its adapter is written."
    FAILED = "failed", "Ended without an adapter; the reason is on the row."


class RunPurpose(State):
    CANDIDATE = "candidate", "Trained to be evaluated, judged and served."
    TRIAL = "trial", "Trained by a search, to compare recipes; the search's choice becomes a candidate."
    POINT = "point", "Trained on a share of the rows, as a point of a learning curve."


class SearchStatus(State):
    RUNNING = "running", "Recipes are being tried; what was tried is kept."
    DONE = "done", "Its choice is the candidate."
    FAILED = "failed", "Ended without a choice; the reason is on the row."


class TrialStatus(State):
    RUNNING = "running", "On its way up the rungs, each with more of the rows."
    STOPPED = "stopped", "Worse on some rung than the others that got there."
    OUT_OF_BUDGET = "out_of_budget", "Stopped because the search's budget is used up."
    COMPLETE = "complete", "Trained on all rows and judged on the validation rows."
    FAILED = "failed", "A training of it failed; the reason is on the row."


class AdapterStatus(State):
    CANDIDATE = "candidate", "Trained; to be loaded, evaluated and judged."
    ACCEPTED = "accepted", "Passed the gate."
    REFUSED = "refused", "Did not pass the gate, or could not be loaded."


class EvaluationStatus(State):
    RUNNING = "running", "The student is being asked; items answered so far are kept."
    DONE = "done", "Every item has its answer."
    FAILED = "failed", "Could not be finished; the reason is on the row."


class Outcome(State):
    PASSED = "passed", "The student is not worse than the teacher is to itself, by the gate's rule."
    FAILED = "failed", "The student is worse than the gate allows."
    INSUFFICIENT = "insufficient", "Too few holdout rows to tell; counts as not passed."


class RolloutStage(State):
    STAGED = "staged", "Checked and loaded into vLLM under its own name; answers only the evaluation."
    LIVE = "live", "The route points at it."
    RETIRED = "retired", "Replaced by a newer adapter, or its verdict was no; unloaded."
    ROLLED_BACK = "rolled_back", "Taken back by a person or a monitor; unloaded."
    REFUSED = "refused", "Failed its checks or vLLM would not load it; the reason is on the row."


class EngineStatus(State):
    STARTING = "starting", "Preparing the base model or waiting for vLLM to answer."
    READY = "ready", "Answers; adapters can be loaded."
    DOWN = "down", "Does not answer; being restarted. The teacher answers meanwhile."
    FAILED = "failed", "Cannot start; the reason and what to do are on the row."
