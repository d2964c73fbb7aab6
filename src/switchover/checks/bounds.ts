/**
 * The 95 % upper bound of a rate of which `hits` were seen in `of` trials: one-sided, exact, after Clopper and Pearson (Biometrika 26, 1934, pp. 404–413).
 * It never promises too much, however few the trials are: 0 of 100 gives 2.95 %, 0 of 299 is the first below 1 %. 1 when there were no trials.
 */
export function upperBound(hits: number, of: number): number {
  if (of <= 0 || hits >= of) return 1;
  // The rate at which so few hits would come in one case of twenty.
  return bisect((rate) => atMost(hits, of, rate) > 0.05);
}

/** The 95 % lower bound of the same. 0 when there were no hits. */
export function lowerBound(hits: number, of: number): number {
  return of <= 0 ? 0 : 1 - upperBound(of - hits, of);
}

/** The largest rate in [0, 1] for which a falling condition holds. */
function bisect(holds: (rate: number) => boolean): number {
  let [low, high] = [0, 1];
  for (let step = 0; step < 60; step++) {
    const middle = (low + high) / 2;
    if (holds(middle)) low = middle;
    else high = middle;
  }
  return high;
}

/** The probability of at most `hits` in `of` trials (binomial), summed downwards from the largest term. */
function atMost(hits: number, of: number, rate: number): number {
  // Beyond the peak the terms grow downwards, so the sum starts at the peak, and the few above it are added too.
  const peak = Math.min(hits, Math.floor((of + 1) * rate));
  const odds = rate / (1 - rate);
  const top = Math.exp(logChoose(of, peak) + peak * Math.log(rate) + (of - peak) * Math.log1p(-rate));
  let sum = top;
  for (let k = peak, term = top; k > 0 && term > sum * 1e-17; k--) sum += term *= k / ((of - k + 1) * odds);
  for (let k = peak, term = top; k < hits && term > sum * 1e-17; k++) sum += term *= ((of - k) * odds) / (k + 1);
  return sum;
}

function logChoose(of: number, hits: number): number {
  return logFactorial(of) - logFactorial(hits) - logFactorial(of - hits);
}

/** Stirling's series; below 20 by multiplication. */
function logFactorial(n: number): number {
  if (n < 20) {
    let product = 1;
    for (let factor = 2; factor <= n; factor++) product *= factor;
    return Math.log(product);
  }
  return n * Math.log(n) - n + Math.log(2 * Math.PI * n) / 2 + 1 / (12 * n) - 1 / (360 * n ** 3);
}
