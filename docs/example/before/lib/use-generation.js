import { useEffect, useState } from 'react';

const POLL_MS = Number(process.env.NEXT_PUBLIC_POLL_MS ?? 1000);
const ATTEMPTS_MAX = 20;

export function useGeneration(taskId) {
  const [task, setTask] = useState(null);
  const [error, setError] = useState(null);

  useEffect(() => {
    setTask(null);
    setError(null);
    if (!taskId) return undefined;
    let attempts = 0;
    const timer = setInterval(async () => {
      attempts += 1;
      if (attempts > ATTEMPTS_MAX) {
        clearInterval(timer);
        setError(new Error('The generation timed out'));
        return;
      }
      const response = await fetch(`/generate/status?taskId=${taskId}`);
      if (!response.ok) return;
      const found = await response.json();
      setTask(found);
      if (found.status === 'completed' || found.status === 'failed') clearInterval(timer);
    }, POLL_MS);
    return () => clearInterval(timer);
  }, [taskId]);

  return { task, error };
}
