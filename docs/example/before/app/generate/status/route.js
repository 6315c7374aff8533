// GET /generate/status?taskId=: what the page asks for once a second. Row level security decides whose it is.
import { NextResponse } from 'next/server';
import { createClient } from '@/lib/supabase/server';

export async function GET(request) {
  const supabase = await createClient();
  const { data } = await supabase
    .from('image_generations')
    .select('status, result, error')
    .eq('task_id', request.nextUrl.searchParams.get('taskId'))
    .maybeSingle();
  return data ? NextResponse.json(data) : NextResponse.json({ error: 'No such task' }, { status: 404 });
}
