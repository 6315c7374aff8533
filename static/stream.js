// The event stream read by fetch, for getToken of client.js: EventSource sends no headers. It comes back as an
// EventSource does, after the pause the server asked for and from the same cursor; until it has once worked it says
// that it is down, and client.js looks for the reason.

const FIRST_EVENT_MS_MAX = 8_000;
const SILENT_MS_MAX = 35_000; // heartbeats come each 15 s: two may be late
const RETRY_MS = 1_000; // of a stream that does not say

/** A transport of client.js; `acts` are what to do by the name of the event. */
export function stream(topic, sink, acts) {
  let abort = new AbortController();
  let timer = 0;
  let closed = false;
  let retryMs = RETRY_MS;

  const open = async () => {
    let worked = false;
    abort = new AbortController();
    const expect = (ms) => {
      clearTimeout(timer);
      timer = setTimeout(() => abort.abort(), ms);
    };
    const take = parser((name, data, id) => {
      if (closed) return;
      if (name === 'retry') retryMs = Number(data);
      else if (Object.hasOwn(acts, name)) {
        worked = true;
        acts[name](JSON.parse(data), id);
      }
    });
    expect(FIRST_EVENT_MS_MAX);
    try {
      const { status, body } = await topic.server.fetch(topic.eventsUrl, { signal: abort.signal, cache: 'no-store' });
      if (status === 200) {
        const reader = body.pipeThrough(new TextDecoderStream()).getReader();
        for (let part = await reader.read(); !part.done; part = await reader.read()) {
          take(part.value);
          if (worked) expect(SILENT_MS_MAX);
        }
      }
    } catch {
      // Broken off, by the network or by us: it goes on from the cursor.
    }
    clearTimeout(timer);
    if (closed) return;
    if (!worked) sink.down();
    else {
      timer = setTimeout(open, retryMs);
      sink.pause();
    }
  };

  open();
  return () => {
    closed = true;
    clearTimeout(timer);
    abort.abort();
  };
}

/**
 * Event streams as they come in pieces (WHATWG HTML 9.2.6): a line ends in LF, CR or CRLF, an event in a blank line.
 *
 * @param {(name: string, data: string, id: string) => void} emit also given `retry` as a name
 * @returns {(text: string) => void}
 */
export function parser(emit) {
  let rest = '';
  let event = '';
  let data = [];
  let id = '';
  return (text) => {
    const lines = (rest + text).split(/\r\n|\n|\r(?!$)/); // a CR at the end may be half of a CRLF
    rest = lines.pop();
    for (const line of lines) {
      const [, field, value] = /^([^:]*):? ?(.*)/s.exec(line);
      if (field === 'event') event = value;
      else if (field === 'data') data.push(value);
      else if (field === 'id') id = value;
      else if (field === 'retry') emit(field, value);
      else if (!line) {
        if (data.length) emit(event, data.join('\n'), id);
        event = '';
        data = [];
      }
    }
  };
}
