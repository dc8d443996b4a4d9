// The native sampler over logits that a test holds: duet_sample_logits with the structs of the cpu device.

import { RequestStructs, ResultStructs } from "../../src/device/cpu/call-structs.ts";
import { createSampleResult, type SampleRequest, type SampleResult } from "../../src/device/sampling.ts";
import { ISA } from "../../src/native/binding.ts";
import { checkStatus, type IsaName, openNative, type Pointer } from "../../src/native/library.ts";
import { addressOf } from "../../src/native/struct.ts";

/** Samples rows firstLogitRow and on of logits[row][vocabularySize]. */
export function sampleNatively(
  isa: IsaName,
  logits: Float32Array,
  vocabularySize: number,
  request: SampleRequest,
  mask: Uint32Array | null = null,
): SampleResult {
  const { symbols } = openNative();
  const result = createSampleResult(request.rowCount);
  const requests = new RequestStructs(1);
  const results = new ResultStructs(1);
  requests.fill(0, request, mask);
  results.fill(0, result, request.rowCount);
  const status = symbols.duet_sample_logits(
    ISA[isa],
    addressOf(logits) as Pointer,
    vocabularySize,
    requests.address as Pointer,
    results.address as Pointer,
  );
  checkStatus(symbols, status, "sample");
  result.emittedCount = results.emittedCount(0);
  return result;
}
