// Shows /openapi.json as a page: routes, parameters, bodies, answers, problem codes, and a curl line for each route.
// Knows the part of OpenAPI 3.1 that the server uses, and nothing else.

const METHODS_WITH_BODY = ['post', 'put', 'patch'];
const EXAMPLES = { prompt: 'A fox at sunset', taskId: 'TASK_ID', task: 'TASK_ID', attempt: '1', wait: '30', limit: '20', progress: 40 };

/** @param {string} name @param {Object<string, unknown>} [properties] @param {...(Node|string)} children */
function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

/** Text in which `code` is marked. @param {string} text */
function prose(text) {
  return text.split('`').map((part, index) => (index % 2 ? element('code', {}, part) : part));
}

const anchor = (method, path) => `${method}-${path}`.replace(/[^A-Za-z0-9]+/g, '-').replace(/-$/, '');
const nameOf = (reference) => reference.split('/').at(-1);

/** A schema in a few words, with links to those that have a name. @returns {(Node|string)[]} */
function typeOf(schema) {
  if (!schema || Object.keys(schema).length === 0) return ['any'];
  if (schema.$ref) return [element('a', { href: `#schema-${nameOf(schema.$ref)}` }, nameOf(schema.$ref))];
  if (schema.enum) return schema.enum.flatMap((value, index) => [index ? ' | ' : '', JSON.stringify(value)]);
  if (schema.anyOf) return schema.anyOf.flatMap((one, index) => [index ? ' | ' : '', ...typeOf(one)]);
  if (schema.type === 'array') return ['list of ', ...typeOf(schema.items)];
  return [schema.format ? `${schema.type} (${schema.format})` : schema.type];
}

function table(heads, rows) {
  const row = (cell, cells) => element('tr', {}, ...cells.map((c) => element(cell, {}, ...[c].flat())));
  const body = element('tbody', {}, ...rows.map((cells) => row('td', cells)));
  return element('div', { className: 'table' }, element('table', {}, element('thead', {}, row('th', heads)), body));
}

function parameters(operation) {
  if (!operation.parameters?.length) return [];
  const rows = operation.parameters.map((one) => [
    element('code', {}, one.name),
    `${one.in}${one.required ? ', required' : ''}`,
    typeOf(one.schema),
    prose(one.description ?? ''),
  ]);
  return [element('h3', {}, 'Parameters'), table(['Name', 'In', 'Type', 'Meaning'], rows)];
}

function requestBody(operation) {
  const content = Object.entries(operation.requestBody?.content ?? {});
  return content.flatMap(([media, { schema }]) => [
    element('h3', {}, 'Request body'),
    element('p', {}, element('code', {}, media), ': ', ...typeOf(schema)),
  ]);
}

function answers(operation, codes) {
  const rows = Object.entries(operation.responses).map(([status, { description, content = {} }]) => [
    element('code', {}, status),
    Object.entries(content).flatMap(([media, { schema }]) =>
      schema ? typeOf(schema) : [element('code', {}, media)],
    ),
    description.split(/(`[a-z_]+`)/).flatMap((part) => explained(part, codes)),
  ]);
  return [element('h3', {}, 'Answers'), table(['Status', 'Body', 'Meaning'], rows)];
}

/** A problem code with its title; anything else as it is. */
function explained(part, codes) {
  const code = part.match(/^`(.+)`$/)?.[1];
  if (!code || !codes[code]) return prose(part);
  const link = element('a', { href: '#problems' }, element('code', {}, code));
  return [element('span', { className: 'line' }, link, ` ${codes[code].title}`)];
}

/** A value of a schema, for the example: what is required, or else the first two members. */
function sample(schema, schemas, name = '') {
  if (schema?.anyOf) return sample(schema.anyOf[0], schemas, name);
  if (schema?.enum) return schema.enum[0];
  if (schema?.type === 'string') return EXAMPLES[name] ?? '…';
  if (schema?.type === 'integer' || schema?.type === 'number') return EXAMPLES[name] ?? schema.minimum ?? 1;
  if (!schema?.$ref) return {};
  const { required, properties = {} } = schemas[nameOf(schema.$ref)];
  const wanted = required?.length ? required : Object.keys(properties).slice(0, 2);
  return Object.fromEntries(wanted.map((one) => [one, sample(properties[one], schemas, one)]));
}

function curl(method, path, operation, schemas) {
  const query = (operation.parameters ?? [])
    .filter((one) => one.in === 'query' && (one.required || one.name === 'taskId'))
    .map((one) => `${one.name}=${EXAMPLES[one.name] ?? 'VALUE'}`)
    .join('&');
  const target = `'${location.origin}${path}${query && `?${query}`}'`;
  const streams = Object.values(operation.responses).some((one) => one.content?.['text/event-stream']);
  const proof = operation.parameters?.find((one) => one.in === 'header' && one.name === 'Authorization');
  const words = ['curl', streams ? '--no-buffer' : '', method === 'get' ? '' : `-X ${method.toUpperCase()}`, target];
  const line = words.filter(Boolean).join(' ') + (proof ? " \\\n  -H 'Authorization: Bearer TOKEN'" : '');
  const schema = operation.requestBody?.content['application/json']?.schema;
  if (!schema || !METHODS_WITH_BODY.includes(method)) return line;
  return `${line} \\\n  -H 'Content-Type: application/json' \\\n  -d '${JSON.stringify(sample(schema, schemas))}'`;
}

function example(method, path, operation, schemas) {
  if (operation.responses['101']) return [];
  const text = curl(method, path, operation, schemas);
  const button = element('button', { type: 'button' }, 'Copy');
  button.addEventListener('click', async () => {
    await navigator.clipboard.writeText(text);
    button.textContent = 'Copied';
  });
  return [element('h3', {}, 'Example'), element('div', { className: 'example' }, element('pre', {}, text), button)];
}

function route(method, path, operation, { codes, schemas }) {
  return element(
    'section',
    { id: anchor(method, path), className: 'route' },
    element('h2', {}, element('span', { className: 'method' }, method.toUpperCase()), ' ', element('code', {}, path)),
    element('p', {}, ...prose(operation.summary ?? '')),
    ...(operation.description ?? '').split('\n\n').filter(Boolean).map((text) => element('p', {}, ...prose(text))),
    ...parameters(operation),
    ...requestBody(operation),
    ...answers(operation, codes),
    ...example(method, path, operation, schemas),
  );
}

function shape(name, schema) {
  const required = new Set(schema.required ?? []);
  const rows = Object.entries(schema.properties ?? {}).map(([property, type]) => [
    element('code', {}, property),
    typeOf(type),
    required.has(property) ? 'required' : 'default' in type ? `else ${JSON.stringify(type.default)}` : '',
  ]);
  return element(
    'section',
    { id: `schema-${name}`, className: 'route' },
    element('h2', {}, name),
    element('p', {}, ...prose(schema.description ?? '')),
    ...(rows.length ? [table(['Member', 'Type', ''], rows)] : []),
  );
}

function problems(codes) {
  const rows = Object.entries(codes).map(([code, { status, title }]) => [
    element('code', {}, code),
    String(status),
    title,
  ]);
  const about = 'Every answer that is not a success is `application/problem+json` (RFC 9457) with one of these codes.';
  const content = [element('h2', {}, 'Problems'), element('p', {}, ...prose(about))];
  return element('section', { id: 'problems', className: 'route' }, ...content, table(['Code', 'Status', 'Title'], rows));
}

function contents(operations, schemas) {
  const link = (href, ...children) => element('li', {}, element('a', { href }, ...children));
  const routes = operations.map(([method, path]) =>
    link(`#${anchor(method, path)}`, element('span', { className: 'method' }, method.toUpperCase()), ` ${path}`),
  );
  const shapes = Object.keys(schemas).map((name) => link(`#schema-${name}`, name));
  const part = (title, items) => [element('h2', {}, title), element('ul', {}, ...items)];
  return [...part('Routes', routes), ...part('Types', shapes), ...part('More', [link('#problems', 'Problems')])];
}

async function show() {
  const main = document.querySelector('main');
  const about = document.querySelector('#about');
  try {
    const response = await fetch('/openapi.json');
    if (!response.ok) throw new Error(`the server answered ${response.status}`);
    const description = await response.json();
    const { schemas = {} } = description.components ?? {};
    const codes = description.info['x-problem-codes'] ?? {};
    const operations = Object.entries(description.paths).flatMap(([path, methods]) =>
      Object.entries(methods).map(([method, operation]) => [method, path, operation]),
    );
    about.textContent = `Version ${description.info.version}. JSON in and out; times are ISO 8601 UTC.`;
    document.querySelector('.contents').append(...contents(operations, schemas));
    main.append(...operations.map(([method, path, operation]) => route(method, path, operation, { codes, schemas })));
    main.append(...Object.entries(schemas).map(([name, schema]) => shape(name, schema)), problems(codes));
    if (location.hash) document.getElementById(location.hash.slice(1))?.scrollIntoView();
  } catch (error) {
    about.textContent = `The description cannot be read: ${error.message}`;
  }
  main.removeAttribute('aria-busy');
}

show();
