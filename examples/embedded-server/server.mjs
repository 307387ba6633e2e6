/**
 * A server of your own with the recommender inside it: no second process and no network between the request and the
 * model. `node examples/embedded-server/server.mjs out/films/student`, then
 *
 *   curl 'localhost:3000/users/ann/films?k=5'
 *   curl -X POST localhost:3000/users/ann/clicks/tt1853728
 */
import fastify from 'fastify';
import { createEngine } from 'limbeck';

const [directory = 'out/films/student', port = '3000'] = process.argv.slice(2);
const engine = await createEngine({ threads: 1 });
const student = await engine.loadStudent(directory);
/** Yours would be in a database. */
const clicks = new Map();

const app = fastify({ logger: true });

app.get('/users/:user/films', (/** @type {any} */ { params, query }, reply) => {
  const history = clicks.get(params.user) ?? [];
  const k = Math.min(Number(query.k ?? 10), student.numItems);
  if (!Number.isInteger(k) || k < 1) return reply.code(400).send({ error: 'k: expected a whole number above 0' });
  if (history.length === 0 && !student.hasPopularity) return { films: [] };
  // Synchronous, and shorter than a hop to another thread.
  const { items } = student.recommend({ history, k });
  return { films: items.map(({ id }) => ({ id, title: student.items[student.indexOf(id) ?? -1]?.text })) };
});

app.post('/users/:user/clicks/:film', (/** @type {any} */ { params }, reply) => {
  if (student.indexOf(params.film) === undefined) return reply.code(404).send({ error: 'no such film' });
  clicks.set(params.user, [...(clicks.get(params.user) ?? []), params.film].slice(-50));
  return { clicks: clicks.get(params.user).length };
});

for (const signal of ['SIGTERM', 'SIGINT']) {
  process.once(signal, async () => {
    await app.close();
    student.dispose();
    engine.dispose();
  });
}
await app.listen({ port: Number(port), host: '127.0.0.1' });
