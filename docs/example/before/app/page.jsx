import { redirect } from 'next/navigation';
import { createClient } from '@/lib/supabase/server';
import Studio from './studio';

export default async function Page() {
  const supabase = await createClient();
  const { data } = await supabase.auth.getClaims();
  if (!data) redirect('/login');
  const { data: pictures } = await supabase
    .from('image_generations')
    .select('task_id, prompt, result')
    .eq('status', 'completed')
    .order('created_at', { ascending: false })
    .limit(12);

  return (
    <main>
      <h1>Pictures</h1>
      <Studio />
      <h2>Earlier</h2>
      <ul>
        {pictures?.map((picture) => (
          <li key={picture.task_id}>
            <a href={picture.result}>{picture.prompt}</a>
          </li>
        ))}
      </ul>
    </main>
  );
}
