'use client';

import { useState } from 'react';
import { useGeneration } from '@/lib/use-generation';

export default function Studio() {
  const [taskId, setTaskId] = useState(null);
  const [refusal, setRefusal] = useState(null);
  const { task, error } = useGeneration(taskId);
  const problem = refusal ?? error?.message ?? task?.error;

  async function generate(event) {
    event.preventDefault();
    setTaskId(null);
    setRefusal(null);
    const response = await fetch('/generate', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ prompt: new FormData(event.currentTarget).get('prompt') }),
    });
    if (response.ok) setTaskId((await response.json()).taskId);
    else setRefusal(`The server answered ${response.status}`);
  }

  return (
    <section>
      <form onSubmit={generate}>
        <label>
          Prompt <input name="prompt" required />
        </label>
        <button>Generate</button>
      </form>
      {problem && <p role="alert">{problem}</p>}
      {taskId && !problem && <p role="status">{task?.status ?? 'pending'}</p>}
      {task?.result && <img src={task.result} alt="The picture" width="512" />}
    </section>
  );
}
