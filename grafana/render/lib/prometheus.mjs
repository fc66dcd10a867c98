// Owns the Prometheus HTTP API: requests, and the error messages of Prometheus.
const TIMEOUT_MS = 60_000;

export class Prometheus {
  #base;

  constructor(url) {
    this.#base = url.replace(/\/+$/, '');
  }

  query(expr, time) {
    return this.#request('/api/v1/query', { query: expr, time });
  }

  queryRange(expr, start, end, step) {
    return this.#request('/api/v1/query_range', { query: expr, start, end, step });
  }

  labelValues(label, selector, { from, to }) {
    const params = new URLSearchParams({ start: from, end: to });
    if (selector) {
      params.set('match[]', selector);
    }
    return this.#request(`/api/v1/label/${encodeURIComponent(label)}/values?${params}`);
  }

  async #request(path, form) {
    // Expressions may outgrow a URL, so queries travel as a form.
    const init = form ? { method: 'POST', body: new URLSearchParams(form) } : {};
    let response;
    try {
      response = await fetch(this.#base + path, { ...init, signal: AbortSignal.timeout(TIMEOUT_MS) });
    } catch (error) {
      throw new Error(`Prometheus cannot be reached: ${error.cause?.message ?? error.message}`);
    }
    const answer = await response.json().catch(() => ({ error: `HTTP status ${response.status}` }));
    if (answer.status !== 'success') {
      throw new Error(answer.error ?? `HTTP status ${response.status}`);
    }
    return answer.data;
  }
}
