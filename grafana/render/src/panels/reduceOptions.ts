// Owns the reduction of a series to the value of a stat or bar gauge.
import { type ReduceDataOptions, ReducerID } from '@grafana/data';

export function completeReduceOptions(options: Partial<ReduceDataOptions> = {}): ReduceDataOptions {
  return { values: false, calcs: [ReducerID.lastNotNull], fields: '', ...options };
}
