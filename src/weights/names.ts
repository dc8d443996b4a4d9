// The names of a container's tensors, in one place: the packer writes them and the model binds them. A tensor that the dies
// split is two tensors, `….die0` and `….die1`, each complete in itself.

import type { DieIndex } from "./split.ts";

const perDie = (base: string, die: DieIndex) => `${base}.die${die}`;

export const tensorNames = {
  /** Untied models only; whole, in head layout. A tied model embeds from `output.die0` and `output.die1`. */
  tokenEmbedding: "token_embd",
  outputNorm: "output_norm",
  output: (die: DieIndex) => perDie("output", die),
} as const;

/** Names inside one block: `layers.3` or `mtp.0`. */
export function blockNames(prefix: string) {
  return {
    attnNorm: `${prefix}.attn_norm`,
    /** Rows: this die's query heads, then its key heads, then its value heads. */
    attnQkv: (die: DieIndex) => perDie(`${prefix}.attn_qkv`, die),
    attnQkvBias: (die: DieIndex) => perDie(`${prefix}.attn_qkv_bias`, die),
    /** Columns: this die's query heads. */
    attnOutput: (die: DieIndex) => perDie(`${prefix}.attn_output`, die),
    attnOutputBias: `${prefix}.attn_output_bias`,
    ffnNorm: `${prefix}.ffn_norm`,
    router: `${prefix}.ffn_gate_inp`,
    routerScale: `${prefix}.ffn_gate_scale`,
    /** Shared experts or dense FFN: gate and up in interleaved rowTiles, this die's intermediate columns. */
    ffnGateUp: (die: DieIndex) => perDie(`${prefix}.ffn_gate_up`, die),
    ffnDown: (die: DieIndex) => perDie(`${prefix}.ffn_down`, die),
    expert: (expertIndex: number) => `${prefix}.ffn_exps.${expertIndex}`,
    /** MTP modules only. */
    mtpEmbeddingNorm: `${prefix}.enorm`,
    mtpHiddenNorm: `${prefix}.hnorm`,
    mtpProjection: `${prefix}.eh_proj`,
    mtpNorm: `${prefix}.norm`,
  } as const;
}

export type BlockNames = ReturnType<typeof blockNames>;
export const layerNames = (layerIndex: number): BlockNames => blockNames(`layers.${layerIndex}`);
export const mtpNames = (mtpIndex: number): BlockNames => blockNames(`mtp.${mtpIndex}`);
