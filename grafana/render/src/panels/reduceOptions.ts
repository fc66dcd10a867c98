// Owns how a series becomes the one value of a stat or bar gauge.
import { type ReduceDataOptions, ReducerID } from '@grafana/data';

export function completeReduceOptions(given: Partial<ReduceDataOptions> = {}): ReduceDataOptions {
  return { values: false, calcs: [ReducerID.lastNotNull], fields: '', ...given };
}
