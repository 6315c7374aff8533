// Supabase past row level security, for what no user asks.
import { createClient } from '@supabase/supabase-js';

export const createAdmin = () =>
  createClient(process.env.NEXT_PUBLIC_SUPABASE_URL, process.env.SUPABASE_SECRET_KEY, {
    auth: { persistSession: false },
  });
