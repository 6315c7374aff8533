"""Which channels are asked of Redis, and which of them it has confirmed. Pure: no I/O, no clock.

Redis answers a SUBSCRIBE channel by channel, in the order asked. So the answers are counted: a topic is confirmed by
the answer to the last SUBSCRIBE of it, and not by one to an earlier one that was still on its way.
"""

# Channels a command: Redis does each command at one go, and others wait meanwhile.
CHANNELS_MAX = 1000


class Subscriptions:
    """want() and drop() say what is wanted; commands() what to send for it; confirm() takes what Redis answers.

    `topics` has the topic of each channel (as bytes, with the prefix) that is asked for.
    """

    def __init__(self, prefix: str) -> None:
        self.topics: dict[bytes, str] = {}
        self._prefix = prefix
        self._wanted: set[str] = set()
        self._changed: set[str] = set()  # wanted or dropped since commands()
        self._channels: dict[str, bytes] = {}  # `topics` the other way round
        self._unanswered: dict[bytes, int] = {}  # SUBSCRIBEs of each channel on their way
        self._confirmed: set[str] = set()

    def want(self, topic: str) -> None:
        self._wanted.add(topic)
        self._changed.add(topic)

    def drop(self, topic: str) -> None:
        self._wanted.discard(topic)
        self._changed.add(topic)

    def start_over(self) -> None:
        """There is a new connection: nothing is asked of it yet."""
        for state in (self.topics, self._channels, self._unanswered, self._confirmed):
            state.clear()
        self._changed = set(self._wanted)

    def commands(self) -> list[tuple[bytes, ...]]:
        """What makes Redis listen to what is wanted now, whatever was said in between. It counts as sent."""
        new: list[bytes] = []
        old: list[bytes] = []
        for topic in self._changed:
            channel = self._channels.get(topic)
            if channel is None and topic in self._wanted:
                new.append(self._ask(topic))
            elif channel is not None and topic not in self._wanted:
                old.append(channel)
                del self._channels[topic], self.topics[channel]
                self._confirmed.discard(topic)
        self._changed.clear()
        return [
            (command, *channels[start : start + CHANNELS_MAX])
            for command, channels in ((b"UNSUBSCRIBE", old), (b"SUBSCRIBE", new))
            for start in range(0, len(channels), CHANNELS_MAX)
        ]

    def _ask(self, topic: str) -> bytes:
        channel = (self._prefix + topic).encode()
        self._channels[topic] = channel
        self.topics[channel] = topic
        self._unanswered[channel] = self._unanswered.get(channel, 0) + 1
        return channel

    def confirm(self, channel: bytes) -> str | None:
        """Redis has answered a SUBSCRIBE of the channel; the topic that is confirmed by it, if one is."""
        unanswered = self._unanswered.get(channel, 0)
        if unanswered > 1:
            self._unanswered[channel] = unanswered - 1
        elif unanswered == 1:
            del self._unanswered[channel]
            topic = self.topics.get(channel)
            if topic is not None:
                self._confirmed.add(topic)
                return topic
        return None

    def is_confirmed(self, topic: str) -> bool:
        """Whether what is published on the topic from now on is heard."""
        return topic in self._confirmed
