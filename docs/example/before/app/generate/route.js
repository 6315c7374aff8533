// POST /generate: a row, and the job to QStash, which waits for the image API in our place.
import { Client } from '@upstash/qstash';
import { NextResponse } from 'next/server';
import { z } from 'zod';
import { createClient } from '@/lib/supabase/server';

const Body = z.object({ prompt: z.string().trim().min(1).max(2000) });

export async function POST(request) {
  const body = Body.safeParse(await request.json().catch(() => null));
  if (!body.success) return NextResponse.json({ error: 'A prompt is needed' }, { status: 400 });
  const { prompt } = body.data;

  const supabase = await createClient();
  const { data } = await supabase.auth.getClaims();
  if (!data) return NextResponse.json({ error: 'Sign in first' }, { status: 401 });

  const taskId = crypto.randomUUID();
  const { error } = await supabase
    .from('image_generations')
    .insert({ user_id: data.claims.sub, task_id: taskId, prompt });
  if (error) return NextResponse.json({ error: error.message }, { status: 500 });

  const qstash = new Client({ baseUrl: process.env.QSTASH_URL, token: process.env.QSTASH_TOKEN });
  const callback = `${process.env.APP_URL}/generate/callback?taskId=${taskId}`;
  await qstash.publishJSON({
    url: process.env.GENERATOR_URL,
    body: { prompt },
    callback,
    failureCallback: callback,
    retries: 1,
  });
  return NextResponse.json({ taskId }, { status: 202 });
}
