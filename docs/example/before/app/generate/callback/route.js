// POST /generate/callback?taskId=: QStash tells what the image API answered, or that it has given up.
import { verifySignatureAppRouter } from '@upstash/qstash/nextjs';
import { createAdmin } from '@/lib/supabase/admin';

export const POST = verifySignatureAppRouter(async (request) => {
  const { status, body, retried, maxRetries } = await request.json();
  const done = status >= 200 && status < 300;
  if (!done && retried < maxRetries) return new Response('It is tried again');

  const change = done
    ? { status: 'completed', result: JSON.parse(Buffer.from(body, 'base64').toString()).url }
    : { status: 'failed', error: `The image API answered ${status}` };
  const { error } = await createAdmin()
    .from('image_generations')
    .update(change)
    .eq('task_id', new URL(request.url).searchParams.get('taskId'))
    .in('status', ['pending', 'processing']);
  return new Response(error?.message ?? 'ok', { status: error ? 500 : 200 });
});
