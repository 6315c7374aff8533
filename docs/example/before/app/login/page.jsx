import { signIn } from './actions';

export default async function Login({ searchParams }) {
  const { refused } = await searchParams;
  return (
    <main>
      <h1>Sign in</h1>
      {refused && <p role="alert">Wrong address or password</p>}
      <form action={signIn}>
        <label>
          E-mail <input name="email" type="email" required />
        </label>
        <label>
          Password <input name="password" type="password" required />
        </label>
        <button>Sign in</button>
      </form>
    </main>
  );
}
