/** What `/v1/recommend` is compared with: a Fastify route that parses the same request and returns a body of one size. */
import fastify from 'fastify';

const body = JSON.parse(process.argv[2]);
const app = fastify();
app.post('/v1/recommend', () => body);
console.log(JSON.stringify({ msg: 'listening', url: await app.listen({ port: 0, host: '127.0.0.1' }) }));
