// Supabase as the user whose cookies came with the request.
import { createServerClient } from '@supabase/ssr';
import { cookies } from 'next/headers';

export async function createClient() {
  const jar = await cookies();
  return createServerClient(
    process.env.NEXT_PUBLIC_SUPABASE_URL,
    process.env.NEXT_PUBLIC_SUPABASE_PUBLISHABLE_KEY,
    {
      cookies: {
        getAll: () => jar.getAll(),
        setAll(changed) {
          try {
            for (const { name, value, options } of changed) jar.set(name, value, options);
          } catch {
            // A page cannot set cookies while it is rendered; proxy.js has done it.
          }
        },
      },
    },
  );
}
