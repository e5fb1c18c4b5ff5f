"""Every Varlink interface: the contract between the units on one page.

A class below is a method; `callers` is the table of who may call it (see `kai.lib.peers` for the names). What
isn't in the table is refused and logged. Interfaces stay compatible one version back: fields are only added,
and added ones have a default.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from kai.lib.peers import BOT, GITHUB, OPERATOR, SCHEDULER, SUPERVISOR, WEBHOOK
from kai.lib.varlink import Call, Empty, Fault, method

MOST_FILES = 32
"""Descriptors that may come with one call."""

Streaming = Literal["edit", "draft", "off"]
"""How a user wants to see a turn grow: in a message that is edited, as a draft, or not at all (S3)."""

# ---- kai.Agent: one user's supervisor, on /run/kai/agent/USER.sock ------------------------------------------


class Part(msgspec.Struct, omit_defaults=True):
    """A piece of a prompt: text, or a file that comes as a descriptor beside the call.

    `descriptor` is its place among those; `name` is what the sender called the file, `mime` what he said it is.
    """

    kind: Literal["text", "file"]
    text: str = ""
    name: str = ""
    mime: str = ""
    descriptor: int = -1


class Ran(msgspec.Struct):
    """How many calls of a tool have ended in this turn."""

    tool: str
    count: int


class Event(msgspec.Struct, omit_defaults=True):
    """One step of a turn. Exactly one `done` comes, and it is last.

    `text` in a text event belongs at `offset` (characters) of the turn's text: who joins late or twice cuts there
    and appends. `cost_usd` is what the turn has cost so far, in US dollars. `since` is when the turn (in `started` and
    `done`) or the call (in `tool`) began, in seconds since the epoch.

    A `tool` event tells what runs now: `summary` in one line, `running` false when nothing does; `ran` counts what has
    ended. An `approval` event with `running` asks for a decision: `detail` is what is to be run or changed, readable;
    `patterns` is what "this session" would allow. Without `running` it tells how the question named by `approval`
    ended.

    `reason` tells why a turn has not come to its own end: `budget`, `died` (the agent), or `cut`: supervisor or host
    ended in it, so that the user decides whether it goes on. `streaming` (in `started`) is how the user wants to see it
    grow.
    """

    kind: Literal["started", "text", "tool", "approval", "usage", "done"]
    offset: int = 0
    text: str = ""
    session: str = ""
    resumed: bool = False
    call: str = ""
    tool: str = ""
    summary: str = ""
    running: bool = False
    since: float = 0.0
    ran: list[Ran] = []
    approval: str = ""
    detail: str = ""
    patterns: list[str] = []
    answer: Literal["", "once", "session", "deny", "expired", "withdrawn"] = ""
    cost_usd: float = 0.0
    outcome: Literal["", "ok", "failed", "interrupted"] = ""
    reason: Literal["", "budget", "died", "cut"] = ""
    error: str = ""
    streaming: Literal["", "edit", "draft", "off"] = ""


class Journal(msgspec.Struct):
    """Which journal of turns answers: after a new generation or boot, an unknown turn may have begun before.

    `streaming` is how this user wants to see a turn grow.
    """

    generation: str
    boot: str
    streaming: Streaming = "edit"


class AgentState(msgspec.Struct):
    """What `/stats` and `kai status` show. Times are seconds since the epoch, money is US dollars.

    `turns`, `cost_usd` and `since` are the session's; today and month are the user's own, in his time zone.
    `up_since` is the start of the supervisor, `workspace` the name of the current one. `jobs` counts the turns of jobs
    that run; the rest is the chat's.
    """

    user: str
    state: Literal["idle", "starting", "ready", "working", "draining"]
    backend: str
    model: str
    session: str
    turn: str
    turns: int
    cost_usd: float
    since: float
    workspace: str = ""
    budget_usd: float = 0.0
    cost_today_usd: float = 0.0
    cost_month_usd: float = 0.0
    up_since: float = 0.0
    jobs: int = 0


class UnknownTurn(Fault, name="kai.Agent.UnknownTurn"):
    """The journal has no such turn. The message is `GENERATION BOOT` of the journal that was asked."""


@method("kai.Agent.Hello", reply=Journal, callers={BOT, SCHEDULER})
class Hello(Call[Journal]):
    """Name the journal. Asked before a turn is marked as running."""


class JobSeat(msgspec.Struct, omit_defaults=True):
    """The job that a turn belongs to: it has a session of its own, beside the chat's, and nobody to answer questions.

    "" and 0 stand for what is in force for the user: workspace (a name as in `Place`), model, budget in US dollars.
    """

    id: int
    name: str
    workspace: str = ""
    model: str = ""
    budget_usd: float = 0.0


@method("kai.Agent.Start", reply=Event, callers={BOT, SCHEDULER}, stream=True, descriptors=MOST_FILES)
class Start(Call[Event]):
    """Run a turn, once: a turn id that the journal knows is joined instead.

    The files of the prompt are stored below the user's `files` before the turn is entered in the journal. Raises Busy
    when they can't be: then it did not begin. Only the scheduler may name a job, and it must: a turn of a job runs
    beside the chat's. Busy is also the answer while as many job turns run as may.
    """

    turn: str
    prompt: list[Part]
    job: JobSeat | None = None


@method("kai.Agent.Join", reply=Event, callers={BOT, SCHEDULER}, stream=True)
class Join(Call[Event]):
    """The stored answer or the live stream of a turn that was started before; never starts one."""

    turn: str


class Stopped(msgspec.Struct):
    """Whether a turn of that id was running and is being interrupted."""

    stopping: bool


@method("kai.Agent.Stop", reply=Stopped, callers={BOT, SCHEDULER})
class Stop(Call[Stopped]):
    """Interrupt this turn if it is running; the session stays."""

    turn: str


class SessionEnded(msgspec.Struct):
    """How a session ended. `saved`: the agent was given time for its memory and used it; else `note` says why not."""

    saved: bool = False
    note: str = ""


@method("kai.Agent.NewSession", reply=SessionEnded, callers={BOT})
class NewSession(Call[SessionEnded]):
    """End the session of this workspace: the next turn starts a fresh one.

    The agent is first given at most 30 s to bring its memory up to date; `Stop` with the same `turn` cuts that short.
    """

    turn: str = ""


class Answered(msgspec.Struct):
    """The answer that holds; `taken` is false when it was another one, or when nothing of that id is asked."""

    taken: bool
    answer: Literal["", "once", "session", "deny", "expired", "withdrawn"] = ""


@method("kai.Agent.Answer", reply=Answered, callers={BOT})
class Answer(Call[Answered]):
    """Decide an approval of this turn. The first answer wins."""

    turn: str
    approval: str
    answer: Literal["once", "session", "deny"]


class Setting(msgspec.Struct):
    """A value in force and where it comes from: "your choice for this workspace", "workspaces.yaml", "your choice",
    "users.yaml", "kai.yaml", "host" or "built-in". `choices` are the values that may be chosen, where they are few."""

    field: str
    value: str
    source: str
    choices: list[str] = []


class SettingsInForce(msgspec.Struct):
    """All settings of the current workspace. `ceiling_usd` is the most that the budget may be."""

    workspace: str
    settings: list[Setting]
    ceiling_usd: float


@method("kai.Agent.Settings", reply=SettingsInForce, callers={BOT, OPERATOR})
class Settings(Call[SettingsInForce]):
    """What is in force for this user now; changes nothing."""


@method("kai.Agent.Set", reply=SettingsInForce, callers={BOT, OPERATOR})
class Set(Call[SettingsInForce]):
    """Choose a value, for the current workspace alone or for all; "" takes the choice back, field "" all of them.

    It holds from the next turn on. Chat may only tighten approvals: `auto` is the operator's to choose. Raises
    InvalidParameter with the field and what is wrong.
    """

    field: str
    value: str
    workspace: bool = False


class Model(msgspec.Struct):
    """A model that the agent offers; `name` is what can be chosen."""

    name: str
    title: str = ""
    description: str = ""


class ModelList(msgspec.Struct):
    """What can be chosen, and what is in force ("" is the agent's own default)."""

    current: str
    source: str
    models: list[Model]


@method("kai.Agent.Models", reply=ModelList, callers={BOT})
class Models(Call[ModelList]):
    """The models that the agent knows; it is started for that where it has not told them yet."""


class Place(msgspec.Struct):
    """A workspace: `name` is `home` or its path below the base. `used` is seconds since the epoch, 0 for never."""

    name: str
    path: str
    used: float = 0.0


class WorkspaceList(msgspec.Struct):
    """The current workspace, and those that can be switched to: recent ones first."""

    current: Place
    places: list[Place]
    base: str = ""


@method("kai.Agent.Workspaces", reply=WorkspaceList, callers={BOT})
class Workspaces(Call[WorkspaceList]):
    """Where the agent works, and where else it could."""


class Switched(msgspec.Struct):
    """The workspace that is current now. `resumed`: it has a session to come back to; `git`: a new one has a
    repository."""

    place: Place
    resumed: bool = False
    git: bool = False


@method("kai.Agent.SwitchWorkspace", reply=Switched, callers={BOT})
class SwitchWorkspace(Call[Switched]):
    """Work in another workspace from the next turn on; with `create`, make it first, as the agent's account.

    Raises InvalidParameter with what is wrong with the name, Busy while a turn runs.
    """

    name: str
    create: bool = False


class MemoryText(msgspec.Struct):
    """The user's memory file. `note` says why `text` is empty or not all of it."""

    path: str
    text: str = ""
    note: str = ""


@method("kai.Agent.Memory", reply=MemoryText, callers={BOT})
class Memory(Call[MemoryText]):
    """What the agent remembers of its user: the file as it is."""


@method("kai.Agent.Note", reply=Empty, callers={SCHEDULER})
class Note(Call[Empty]):
    """Tell what reached the user's chat that no turn of the chat said: it enters his history, and his next chat turn
    is told of it in one line. The same `turn` again changes nothing.

    `what` is what it was, such as `job 7 "backups"`; `at` is when it was delivered, in seconds since the epoch.
    """

    turn: str
    what: str
    text: str
    at: float


@method("kai.Agent.ForgetJob", reply=Empty, callers={SCHEDULER})
class ForgetJob(Call[Empty]):
    """A job is gone: its session is forgotten. Its running turn, if there is one, is stopped."""

    job: int


@method("kai.Agent.State", reply=AgentState, callers={BOT, OPERATOR})
class State(Call[AgentState]):
    """Describe the supervisor; changes nothing."""


@method("kai.Agent.Retire", reply=Empty, callers={OPERATOR})
class Retire(Call[Empty]):
    """Take no new turn, finish the running one, then leave: how an upgrade changes the code under a busy agent."""


class FileSent(msgspec.Struct):
    """The file's name and size in bytes, and the outbox row that holds it."""

    name: str
    size: int
    id: int


@method("kai.Agent.SendFile", reply=FileSent, callers={OPERATOR})
class SendFile(Call[FileSent]):
    """Send a file to the user's chat. It is read with the agent's own rights, by a path in the current workspace or
    below the user's `files`.

    Raises InvalidParameter with what is wrong with the path, or that the file is too big.
    """

    path: str
    caption: str = ""


# ---- kai.Bot: what may reach a chat, on /run/kai/bot.sock ---------------------------------------------------


class Stored(msgspec.Struct):
    """The outbox row that holds the message; it is on disk."""

    id: int


class Attachment(msgspec.Struct):
    """A file that comes as a descriptor beside the call; an image is shown as a photo."""

    name: str
    descriptor: int


class BotStatus(msgspec.Struct):
    """What `kai status` shows of the bot. `dead` counts the messages that a person has to decide on; `let_in` names the
    users who are past the TOTP gate now."""

    name: str
    state: str
    users: int
    queued: int
    running: int
    unsent: int
    dead: int = 0
    let_in: list[str] = []


@method("kai.Bot.Deliver", reply=Stored, callers={SUPERVISOR, SCHEDULER}, descriptors=1)
class Deliver(Call[Stored]):
    """Send a text (Markdown), or a file with a text as its caption, to a user.

    The key is the caller's own: the same key again stores nothing new. A supervisor may name its own user only. With
    `job`, which is the scheduler's to give, the message gets a button that removes this job.
    """

    key: str
    user: str
    text: str
    file: Attachment | None = None
    job: int = 0


class Span(msgspec.Struct, omit_defaults=True):
    """A piece of a notice. It is text whatever it holds: nothing in it is markup. `url` makes it a link."""

    text: str
    url: str = ""
    bold: bool = False
    code: bool = False


@method("kai.Bot.Notify", reply=Stored, callers={WEBHOOK, GITHUB})
class Notify(Call[Stored]):
    """Send a notice to a user, or to one of the chats that his `notify_chats` names.

    The key is the caller's own: the same key again for the same user stores nothing new. What doesn't fit into a
    message is cut. Raises InvalidParameter for a user or a chat that isn't configured.
    """

    key: str
    user: str
    spans: list[Span]
    chat: int = 0


class Taken(msgspec.Struct):
    """Whether the update is on disk; where it isn't, its secret token is another one than Telegram was told."""

    taken: bool


@method("kai.Bot.TakeUpdate", reply=Taken, callers={WEBHOOK})
class TakeUpdate(Call[Taken]):
    """Take in an update that Telegram posted: `update` is its body as it came, `secret` the header's secret token. An
    empty `update` only asks whether the secret is right.

    Raises Busy when it can't be stored now, or while the bot polls: Telegram then tries again.
    """

    update: str
    secret: str


@method("kai.Bot.Status", reply=BotStatus, callers={OPERATOR})
class Status(Call[BotStatus]):
    """Describe the bot; changes nothing."""


class Entry(msgspec.Struct, omit_defaults=True):
    """A row of the inbox or the outbox, as kai-queue(5) describes it.

    `id` is `i` or `o` and the row's number. `turn` is the turn that it begins, is part of, or answers. `when` is when
    it came to its state, in seconds since the epoch. `text` is its beginning, or all of it where one row was asked for.
    """

    id: str
    user: str
    state: str
    kind: str
    when: float
    turn: str = ""
    text: str = ""
    error: str = ""
    bot: int = 0


class Entries(msgspec.Struct):
    """Rows, the oldest first; `more` counts those that were left off."""

    entries: list[Entry]
    more: int = 0


@method("kai.Bot.Queue", reply=Entries, callers={OPERATOR})
class Queue(Call[Entries]):
    """What waits, runs, is on its way, or is a dead letter; with `everything`, what is finished too."""

    user: str = ""
    everything: bool = False


class Details(msgspec.Struct):
    """One row whole, and the rows that belong to it: parts of the turn, messages of the answer."""

    entry: Entry
    related: list[Entry]


@method("kai.Bot.Show", reply=Details, callers={OPERATOR})
class Show(Call[Details]):
    """One row by its id. Raises InvalidParameter for one that isn't there."""

    id: str


@method("kai.Bot.Retry", reply=Entry, callers={OPERATOR})
class Retry(Call[Entry]):
    """Work on, or send, a dead letter again; or send again what may or may not have arrived.

    Raises InvalidParameter where that can't be done, with why.
    """

    id: str


@method("kai.Bot.Drop", reply=Entry, callers={OPERATOR})
class Drop(Call[Entry]):
    """Give up what waits, or a dead letter. Raises InvalidParameter where that can't be done, with why."""

    id: str


# ---- kai.Scheduler: the jobs, on /run/kai/scheduler.sock ----------------------------------------------------


class RunRecord(msgspec.Struct, omit_defaults=True):
    """One run of a job. Times are seconds since the epoch, 0 for not yet.

    `outcome`: `delivered`, `quiet` (its condition wasn't met, and nobody was to be told), `failed` (`error` says why).
    """

    run: int
    due: float
    began: float
    ended: float = 0.0
    outcome: Literal["", "delivered", "quiet", "failed"] = ""
    error: str = ""
    cost_usd: float = 0.0


class Job(msgspec.Struct, omit_defaults=True):
    """A job as its owner sees it; the names are those of kai-api(7).

    `schedule_data` is JSON text: {"run_at"}, {"times"}, {"seconds"} or {"calendar"}. `timezone` is where its local
    times are meant. `state`: `active` has a timer, `paused` has none (`note` says why), `ended` is kept for a while so
    that its last result can be looked up. `next` is when it runs next, in seconds since the epoch, 0 for not at all.
    In a list `prompt` is cut to LISTED_PROMPT characters.
    """

    id: int
    user: str
    name: str
    job_type: Literal["reminder", "agent"]
    prompt: str
    schedule_type: Literal["once", "daily", "interval", "calendar"]
    schedule_data: str
    auto_remove: bool
    notify_on_check: bool
    created_at: float
    state: Literal["active", "paused", "ended"]
    timezone: str
    workspace: str = ""
    model: str = ""
    budget_usd: float = 0.0
    next: float = 0.0
    failures: int = 0
    running: bool = False
    note: str = ""
    last: RunRecord | None = None


LISTED_PROMPT = 200


class Jobs(msgspec.Struct):
    """Jobs, the next to run first; `more` counts those that were left off because an answer holds no more."""

    jobs: list[Job]
    more: int = 0


class JobDetails(msgspec.Struct):
    """One job whole, its next times (seconds since the epoch) and its last runs, the newest first."""

    job: Job
    times: list[float]
    runs: list[RunRecord]


@method("kai.Scheduler.Add", reply=Job, callers={SUPERVISOR, OPERATOR})
class Add(Call[Job]):
    """Make a job. A supervisor's is its own user's (`user` may be left empty); the operator names the user.

    `schedule_data` is JSON text of an object, see `Job`. `timezone` "" is the user's. Raises InvalidParameter, whose
    message begins with the field's name.
    """

    name: str
    prompt: str
    schedule_type: str
    schedule_data: str
    job_type: str = "reminder"
    auto_remove: bool = False
    notify_on_check: bool = False
    user: str = ""
    timezone: str = ""
    workspace: str = ""
    model: str = ""
    budget_usd: float = 0.0


@method("kai.Scheduler.List", reply=Jobs, callers={SUPERVISOR, BOT, OPERATOR})
class ListJobs(Call[Jobs]):
    """The jobs of a user; the operator may leave him out for all. With `ended`, those that are over too."""

    user: str = ""
    ended: bool = False


@method("kai.Scheduler.Get", reply=JobDetails, callers={SUPERVISOR, BOT, OPERATOR})
class GetJob(Call[JobDetails]):
    """One job. Raises NoSuchJob also for a job of somebody else."""

    id: int
    user: str = ""


class NoSuchJob(Fault, name="kai.Scheduler.NoSuchJob"):
    """There is no job of that id, or it isn't the caller's."""


@method("kai.Scheduler.Edit", reply=Job, callers={SUPERVISOR, OPERATOR})
class EditJob(Call[Job]):
    """Change what is given of a job; a new schedule needs its type and its data. Raises as Add and Get do."""

    id: int
    user: str = ""
    name: str | None = None
    prompt: str | None = None
    schedule_type: str | None = None
    schedule_data: str | None = None
    job_type: str | None = None
    auto_remove: bool | None = None
    notify_on_check: bool | None = None
    timezone: str | None = None
    workspace: str | None = None
    model: str | None = None
    budget_usd: float | None = None


@method("kai.Scheduler.Remove", reply=Empty, callers={SUPERVISOR, BOT, OPERATOR})
class RemoveJob(Call[Empty]):
    """Remove a job, its timer and its session; a running turn of it is stopped."""

    id: int
    user: str = ""


@method("kai.Scheduler.Pause", reply=Job, callers={SUPERVISOR, BOT, OPERATOR})
class PauseJob(Call[Job]):
    """Take its timer away until Resume."""

    id: int
    user: str = ""


@method("kai.Scheduler.Resume", reply=Job, callers={SUPERVISOR, BOT, OPERATOR})
class ResumeJob(Call[Job]):
    """Give a paused job its timer back. Raises InvalidParameter when its only time has passed."""

    id: int
    user: str = ""


@method("kai.Scheduler.Trigger", reply=Empty, callers={SUPERVISOR, BOT, OPERATOR})
class TriggerJob(Call[Empty]):
    """Run a job now, once, as `systemctl start kai-job@ID` does; its timer stays. Raises Busy while it runs."""

    id: int
    user: str = ""


class Times(msgspec.Struct):
    """When a schedule elapses next, in seconds since the epoch, by systemd's own calculation; and how systemd reads
    it."""

    times: list[float]
    timezone: str
    calendar: list[str]


@method("kai.Scheduler.Preview", reply=Times, callers={SUPERVISOR, BOT, OPERATOR})
class PreviewJob(Call[Times]):
    """The next times of a schedule, at most 20. Raises InvalidParameter as Add does."""

    schedule_type: str
    schedule_data: str
    user: str = ""
    timezone: str = ""
    count: int = 5


@method("kai.Scheduler.SetTimezone", reply=Empty, callers={SUPERVISOR})
class SetTimezone(Call[Empty]):
    """The user's time zone by his own choice, "" when he took it back: his recurring jobs without a zone of their own
    follow; a once-job keeps its moment. `user` is a supervisor's own, and may be left empty."""

    timezone: str
    user: str = ""


class RunStep(msgspec.Struct):
    """A line for the journal of kai-job@ID; `failed` in the last one makes the unit fail."""

    line: str
    failed: bool = False


@method("kai.Scheduler.Run", reply=RunStep, callers={SCHEDULER}, stream=True)
class RunJob(Call[RunStep]):
    """Run a job: what kai-job@ID says when its time has come. An unfinished run of the job is joined.

    `start` names the start of kai-job@ID: who asks again, since the answer was lost, is told how that run ended.
    """

    id: int
    start: str = ""


class Differences(msgspec.Struct):
    """What systemd had otherwise than the store, in words, before it was put right."""

    found: list[str]


@method("kai.Scheduler.Reconcile", reply=Differences, callers={OPERATOR})
class Reconcile(Call[Differences]):
    """Make systemd's timers those of the store; with `look`, only tell what differs."""

    look: bool = False


# ---- kai.Timers: the only root, on /run/kai/timers.sock -----------------------------------------------------


class Timer(msgspec.Struct, omit_defaults=True):
    """What kai-timers makes: kai-job@JOB.timer, and nothing else.

    `calendar` are expressions for OnCalendar=; else `every` seconds (OnUnitActiveSec=), the first after `first` seconds
    (OnActiveSec=). `revision` stands in the timer's description: another one is another timer. `persistent`: a time
    that was missed while the host was off is made up for at once.
    """

    job: int
    revision: int
    calendar: list[str] = []
    every: int = 0
    first: int = 0
    persistent: bool = False


class TimerState(msgspec.Struct):
    """A timer that systemd has. `next` is when it elapses, in seconds since the epoch, 0 for never; only where it was
    asked for."""

    job: int
    revision: int
    next: float = 0.0


class TimerFault(msgspec.Struct):
    """Why a timer couldn't be made or removed."""

    job: int
    error: str


class TimerList(msgspec.Struct):
    """All timers of jobs; `strangers` are units named kai-job@… that Kai didn't make."""

    timers: list[TimerState]
    strangers: list[str]


@method("kai.Timers.List", reply=TimerList, callers={SCHEDULER})
class ListTimers(Call[TimerList]):
    """What systemd has; the next elapse of `jobs` is looked up."""

    jobs: list[int] = msgspec.field(default_factory=list)


class TimersSet(msgspec.Struct):
    """The timers as systemd has them now, and those that it refused."""

    timers: list[TimerState]
    faults: list[TimerFault]


@method("kai.Timers.Set", reply=TimersSet, callers={SCHEDULER})
class SetTimers(Call[TimersSet]):
    """Make these timers; one of the same job is replaced."""

    timers: list[Timer]


@method("kai.Timers.Remove", reply=TimersSet, callers={SCHEDULER})
class RemoveTimers(Call[TimersSet]):
    """Stop the timers of these jobs and, with `forget`, remove what systemd remembers of them (their stamps).
    `strangers` stops every timer named kai-job@… that Kai didn't make."""

    jobs: list[int] = msgspec.field(default_factory=list)
    forget: bool = False
    strangers: bool = False


@method("kai.Timers.Start", reply=Empty, callers={SCHEDULER})
class StartJobs(Call[Empty]):
    """Start kai-job@ID.service of these jobs now; doesn't wait for them."""

    jobs: list[int]


# ---- kai.Totp: the verifier, on /run/kai/totp.sock -----------------------------------------------------------


class Verdict(msgspec.Struct):
    """What the verifier says, and all that it says to the bot.

    `remaining` is how many more wrong codes there may be before the lock (bad); `until` is when the lock ends, in
    seconds since the epoch (locked).
    """

    state: Literal["ok", "bad", "locked", "off"]
    remaining: int = 0
    until: float = 0.0


class Doubtful(Fault, name="kai.Totp.Doubtful"):
    """It can't be told whether this user may pass, so he may not. The message says why, and what the operator does."""


@method("kai.Totp.Verify", reply=Verdict, callers={BOT})
class Verify(Call[Verdict]):
    """Try a code of six digits. A wrong one is counted on disk before the answer goes out, a right one is used up.

    An empty `code` counts nothing and asks how things stand: off, locked, or bad with what remains. Raises Doubtful.
    """

    user: str
    code: str = ""


class TotpState(msgspec.Struct):
    """What the verifier knows of an enrolled user. Times are seconds since the epoch, 0 for never.

    `trouble` says why his codes can't be checked, and what the operator does.
    """

    user: str
    failures: int = 0
    locked_until: float = 0.0
    accepted: float = 0.0
    trouble: str = ""


class TotpStates(msgspec.Struct):
    """All enrolled users, by name."""

    users: list[TotpState]


@method("kai.Totp.List", reply=TotpStates, callers={OPERATOR})
class ListTotp(Call[TotpStates]):
    """What `kai totp status` shows."""


@method("kai.Totp.Unlock", reply=Empty, callers={OPERATOR})
class Unlock(Call[Empty]):
    """Forget a user's failures and his lock; codes that were used stay used. Raises Doubtful."""

    user: str


# ---- kai.Proxy: outgoing calls with keys, on /run/kai/proxy.sock ---------------------------------------------


class ServiceInfo(msgspec.Struct, omit_defaults=True):
    """A service that a user may call: what his agent needs to know, and no key. `suffix`: a path may be appended."""

    name: str
    description: str = ""
    notes: str = ""
    method: str = "GET"
    url: str = ""
    suffix: bool = False


class Services(msgspec.Struct):
    """The services of a user, by name."""

    services: list[ServiceInfo]


@method("kai.Proxy.List", reply=Services, callers={SUPERVISOR, OPERATOR})
class ListServices(Call[Services]):
    """What a user may call. A supervisor's is its own user; the operator names one, or nobody for all."""

    user: str = ""


class ServiceAnswer(msgspec.Struct, omit_defaults=True):
    """What a service said. `status` is its HTTP status, `type` its Content-Type, `size` the bytes that were written."""

    status: int
    type: str = ""
    size: int = 0


class UnknownService(Fault, name="kai.Proxy.UnknownService"):
    """There is no service of that name, or the user may not call it: both look the same."""


class ServiceRefused(Fault, name="kai.Proxy.Refused"):
    """The call breaks a rule (origin, address, suffix, size); nothing was sent, or the answer was thrown away."""


class ServiceUnreachable(Fault, name="kai.Proxy.Unreachable"):
    """The service could not be reached, or did not answer in time."""


class TooManyCalls(Fault, name="kai.Proxy.TooManyCalls"):
    """The service's rate is used up for this user. The message is in how many seconds the next call may come."""


@method("kai.Proxy.Call", reply=ServiceAnswer, callers={SUPERVISOR}, descriptors=2)
class CallService(Call[ServiceAnswer]):
    """Call a service for a supervisor's own user.

    Two descriptors come with it: one to read the request's body from (JSON, UTF-8; empty for none), and one that the
    answer's body is written to, 10 MiB at most. Raises UnknownService, ServiceRefused, ServiceUnreachable,
    TooManyCalls, and InvalidParameter whose message begins with the field's name.
    """

    name: str
    params: dict[str, str] = msgspec.field(default_factory=dict)
    path_suffix: str = ""


# ---- kai.Webhook: the intake of webhooks, on /run/kai/intake.sock --------------------------------------------


class Subscriptions(msgspec.Struct, omit_defaults=True):
    """What a user hears of GitHub. `fixed` are the repositories of users.yaml, `repositories` those he added himself.

    `chat` is where notices go, 0 for his own chat; `chats` are those that it may be. `reviews` and `triage` are what is
    in force. `allowed` are the patterns of what he may add. `endpoint` is where GitHub is to post, "" when it isn't
    configured.
    """

    fixed: list[str] = []
    repositories: list[str] = []
    allowed: list[str] = []
    chat: int = 0
    chats: list[int] = []
    reviews: bool = False
    triage: bool = False
    endpoint: str = ""


@method("kai.Webhook.Subscriptions", reply=Subscriptions, callers={BOT})
class ListSubscriptions(Call[Subscriptions]):
    """A user's subscriptions."""

    user: str


@method("kai.Webhook.Subscribe", reply=Subscriptions, callers={BOT})
class Subscribe(Call[Subscriptions]):
    """Change a user's subscriptions: `add` or `remove` a repository, set the `chat` (0: his own), the two switches.

    Raises InvalidParameter for what he may not have, which changes nothing. What isn't given stays.
    """

    user: str
    add: str = ""
    remove: str = ""
    chat: int | None = None
    reviews: bool | None = None
    triage: bool | None = None


class IntakeState(msgspec.Struct, omit_defaults=True):
    """The state of the intake. Times are seconds since the epoch, 0 for never; `last` names the last accepted event.

    `stored` counts what waits to be delivered, `failed` what was given up; `given_up` has the ids of the newest of
    these. `github` and `generic` tell whether there is a secret for that endpoint, `rotating` whether an old one of
    GitHub's is taken too. `trouble` is why nothing can be accepted or delivered, "" when all is well.
    """

    endpoint: str = ""
    github: bool = False
    rotating: bool = False
    generic: bool = False
    last: str = ""
    last_at: float = 0.0
    stored: int = 0
    oldest_at: float = 0.0
    failed: int = 0
    given_up: list[str] = []
    trouble: str = ""


@method("kai.Webhook.State", reply=IntakeState, callers={BOT, OPERATOR})
class ReadIntake(Call[IntakeState]):
    """What /webhooks and `kai webhooks` show."""


class Repositories(msgspec.Struct):
    """OWNER/NAME of each repository that somebody is subscribed to, in small letters."""

    names: list[str]


@method("kai.Webhook.Repositories", reply=Repositories, callers={GITHUB})
class ListRepositories(Call[Repositories]):
    """All repositories that users.yaml or a user's own choice names."""


@method("kai.Webhook.Retry", reply=IntakeState, callers={OPERATOR})
class RetryDeliveries(Call[IntakeState]):
    """Try again what was given up."""


# ---- kai.GitHub: what needs GitHub's API, on /run/kai/github.sock --------------------------------------------


class Redelivered(msgspec.Struct):
    """How many deliveries GitHub has on record for the time looked at, and how many of them it was asked to repeat."""

    seen: int
    asked: int


@method("kai.GitHub.Redeliver", reply=Redelivered, callers={WEBHOOK, GITHUB, OPERATOR})
class Redeliver(Call[Redelivered]):
    """Ask GitHub for what it couldn't deliver in the last three days, and have it repeated. A second call joins the
    first. Raises Busy when GitHub can't be reached.
    """
