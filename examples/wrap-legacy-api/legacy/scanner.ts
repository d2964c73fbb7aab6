// The hand-held scanners: their firmware is from another time. They post each parcel, and once more when the answer is late; by the
// scan id the parcels API could tell, but doesn't.

/** Gives the status of the last answer. */
export async function scan(url: string, parcelId: string, impatient: boolean): Promise<number> {
  const once = async (): Promise<number> => {
    const { status } = await fetch(`${url}/parcels`, {
      method: 'POST',
      headers: { 'content-type': 'application/json', 'x-scan-id': `scan-${parcelId}` },
      body: JSON.stringify({ parcelId }),
    });
    return status;
  };
  const status = await once();
  return impatient ? await once() : status;
}
